"""Does a mechanism keep its promise? Compare the epsilon that it promises with the one that its worst case proves."""

from metaleak.clients.rules import first_order_maml
from metaleak.defenses import GaussianMechanism
from metaleak.deploy import Trials, audit, canary_for

if __name__ == "__main__":
    mechanism = GaussianMechanism(clip=1.0, epsilon=8.0, releases=2)
    canary, delta = canary_for(mechanism, first_order_maml(), "query", 2, 0)
    found = audit(canary, delta, Trials(trials=2000))
    print(f"promised {found.accounted:.2f}, proven at least {found.lower_bound:.2f}")
