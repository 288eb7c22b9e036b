"""What the span test finds under which noise: members of the query and of the support set against non-members.

    METALEAK_DATA=../shared/data python tests/benchmarks/span_quality.py mnist 256,256 [CASE ...] [--json]

Forty learners with 5-way 5-shot 15-query tasks at the first round's parameters, simulated without Flower; every
query or support image they hold is a member, 6 000 images of the same classes that nobody holds are not. Intervals
are 95 %, learners resampled.
"""

import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.append(str(Path(__file__).parent))

import measuring

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.observation import Observation
from metaleak.attacks.span.span_test import SpanTest
from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import MNIST, FashionMNIST
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.defenses import Defense, Noise
from metaleak.deploy.assess.truth import ask, inputs
from metaleak.deploy.config.experiment import TargetSettings

LEARNERS, NON_MEMBERS = 40, 6000


def cases() -> dict[str, tuple[Defense, ...]]:
    """Return the defenses by name."""
    made: dict[str, tuple[Defense, ...]] = {"none": ()}
    for scale in (0.03, 0.1, 0.3, 1.0, 4.0):
        made[f"shared-{scale:g}"] = (Noise(place="shared", scale=scale),)
    for scale in (0.3, 1.0):
        query, support = Noise(place="query", scale=scale), Noise(place="support", scale=scale)
        made |= {f"query-{scale:g}": (query,), f"support-{scale:g}": (support,), f"both-{scale:g}": (query, support)}
    for scale in (1.0, 10.0):
        made[f"inner-{scale:g}"] = (Noise(place="inner", scale=scale),)
    return made


def observe(federation: Federation, learners: list[int]) -> Observation:
    """Return what the server sees in round 1, with all that the adaptive attack may know."""
    parameters = federation.initial_parameters()
    gradients, _ = cohort_meta_gradients(federation.learners(learners), parameters, 1)
    own = federation.split().held_out
    return Observation(
        federation.model,
        federation.rule,
        parameters,
        gradients,
        federation.task.ways,
        federation.task.shots,
        federation.task.queries,
        own_examples=inputs(federation, own),
        own_labels=federation.examples().labels[own],
        defenses=federation.defenses,
    )


def rows(data: str, hidden: tuple[int, ...], name: str, defenses: tuple[Defense, ...]) -> list[dict[str, Any]]:
    """Return one line for each set, attack and case."""
    federation = Federation(
        seed=1,
        data=MNIST() if data == "mnist" else FashionMNIST(),
        task=TaskShape(ways=5, shots=5, queries=15),
        partition=Partition(learners=LEARNERS),
        model=MLP(hidden=hidden),
        rule=MAML(),
        defenses=defenses,
    )
    learners = list(range(LEARNERS))
    observation = observe(federation, learners)
    adaptive = any(defense.place in ("query", "support") for defense in defenses)
    made = []
    sets: tuple[Literal["query", "support"], ...] = ("query", "support")
    for asks in sets:
        truth = ask(federation, learners, 1, asks, TargetSettings(members=10**5, non_members=NON_MEMBERS))
        targets, member = truth.targets(federation, learners), truth.member.numpy()
        attacks = {
            "free": SpanTest(asks=asks, coefficients="free"),
            "predicted": SpanTest(asks=asks),
            **({"knows": SpanTest(asks=asks, knows_defenses=True)} if adaptive else {}),
        }
        for attack, test in attacks.items():
            started = time.perf_counter()
            answers = test(observation, targets, seed=0)
            seconds = time.perf_counter() - started
            scores = {attack: answers.scores}
            if attack == "free":
                scores["threshold"] = -answers.statistics["outside"]
            for of, values in scores.items():
                found = evaluate(values.numpy(), member, groups=truth.learner.numpy(), resamples=100)
                made.append(
                    {
                        "data": data,
                        "hidden": ",".join(map(str, hidden)),
                        "defense": name,
                        "asks": asks,
                        "attack": of,
                        "members": found.members,
                        "non-members": found.non_members,
                        "AUC": _text(found.auc),
                        "TPR at 0.1 %": _text(found.tpr["0.001"]),
                        "s": round(seconds, 1),
                    }
                )
    return made


def _text(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def main() -> None:
    """Print one table per case, as soon as it is measured; with `--json` one list per line."""
    torch.set_num_threads(1)
    words = [word for word in sys.argv[1:] if word != "--json"]
    data, hidden = words[0], tuple(int(width) for width in words[1].split(","))
    known = cases()
    for name in words[2:] or known:
        measuring.show(rows(data, hidden, name, known[name]), "--json" in sys.argv)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
