"""Why an attack is not applicable: the check that the command line, suites and Python share."""

from metaleak.attacks.attack import AsksMembership, Attack, DefenseSelective, Selective
from metaleak.attacks.rounds import AsksOverRounds
from metaleak.attacks.threat_model import ThreatModel
from metaleak.clients.models import Model
from metaleak.defenses import Defense


def refusal(
    attack: Attack,
    model: Model,
    defenses: tuple[Defense, ...] = (),
    threat_model: ThreatModel | None = None,
    all_shared: bool = True,
    rounds: int = 1,
    fixed_sets: bool = True,
) -> str | None:
    """Return why `attack` is not applicable, as the end of a line that begins with its name, or `None` if it is.

    The reasons are a required capability that `threat_model` does not include; that the attack does not apply to
    gradients of `model` or under `defenses`; that it needs the gradients of all parameters and these are not
    `all_shared`; and, for membership in several `rounds`, that it uses one round only, or needs the same sets in all
    of them and learners do not have `fixed_sets`.
    """
    if threat_model is not None and (lacking := threat_model.lacks(attack.requires)):
        return f"requires {', '.join(lacking)}, which the threat model does not include"
    if isinstance(attack, Selective) and not attack.applies_to(model):
        # A model made from a user's own module has that module's name.
        return f"does not apply to the model {type(getattr(model, 'module', model)).__name__}"
    if not all_shared and not getattr(attack, "takes_parts", False):
        return "does not apply: it needs the gradients of all parameters, but the learners share only some"
    if isinstance(attack, DefenseSelective) and (reason := attack.reason_against(defenses)):
        return f"does not apply: {reason}"
    if rounds > 1 and isinstance(attack, AsksMembership):
        if not isinstance(attack, AsksOverRounds):
            return f"uses one round only, but targets.rounds is {rounds}"
        if not fixed_sets and getattr(attack, "needs_fixed_sets", False):
            return f"needs the same sets in all {rounds} rounds (targets.rounds), but learners draw new episodes"
        if reason := attack.reason_against_rounds():
            return f"uses one round only, but targets.rounds is {rounds}: {reason}"
    return None
