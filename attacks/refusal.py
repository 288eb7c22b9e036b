"""Why an attack cannot be made: the check that the command line, suites and Python share."""

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
    sets_last: bool = True,
) -> str | None:
    """Return why `attack` cannot be made, as the end of a line that begins with its name, or `None` when it can.

    It cannot when it requires a capability that the adversary of `threat_model` does not have, when it does not apply
    to gradients of `model`, or not under `defenses`; when it needs the gradients of all parameters, and these are not
    `all_shared`; and when it asks for membership in several `rounds` but sees one, or needs the same sets in all of
    them and not all `sets_last`.
    """
    if threat_model is not None and (lacking := threat_model.lacks(attack.requires)):
        return f"requires {', '.join(lacking)}, which the threat model does not include"
    if isinstance(attack, Selective) and not attack.applies_to(model):
        # A model made from a user's own module has that module's name.
        return f"does not apply to the model {type(getattr(model, 'module', model)).__name__}"
    if not all_shared and not getattr(attack, "takes_parts", False):
        return "does not apply: it needs the gradients of all parameters, and the learners share a part of them"
    if isinstance(attack, DefenseSelective) and (reason := attack.reason_against(defenses)):
        return f"does not apply: {reason}"
    if rounds > 1 and isinstance(attack, AsksMembership):
        if not isinstance(attack, AsksOverRounds):
            return f"sees one round, and is asked about {rounds} (targets.rounds)"
        if not sets_last and getattr(attack, "needs_lasting_sets", False):
            return f"is asked about {rounds} rounds (targets.rounds), in which learners draw new episodes"
        if reason := attack.reason_against_rounds():
            return f"sees one round, and is asked about {rounds} (targets.rounds): {reason}"
    return None
