"""What an adversary observes of a run: the record, and what the attack requires beside it, taken from the truth."""

from collections.abc import Sequence
from dataclasses import dataclass

from metaleak.attacks.attack import Attack
from metaleak.attacks.observation import Observation, Update
from metaleak.attacks.threat_model import Capability
from metaleak.clients.federation import Federation
from metaleak.deploy.assess.truth import SETS, Truth, held_classes, held_inputs, inputs, rest_of_sets
from metaleak.server.record.reader import Record

_SURROUNDED: frozenset[Capability] = frozenset({"rest of the set", "both candidates"})


@dataclass(frozen=True, eq=False)
class Attacked:
    """What of a run is attacked: the `rounds` of its `record`, and the `learners` that answered in all of them."""

    record: Record
    rounds: Sequence[int]
    learners: Sequence[int]
    federation: Federation


def observe(attacked: Attacked, round: int, attack: Attack, truth: Truth | None = None) -> Observation:
    """Return what the adversary holds about the learners in `round`, row for row.

    It sent the parameters and knows the model, the rule and the task's shape; all else only as far as the attack
    requires it. Its own images are those kept for evaluation, which are the server's. Of the `truth` it takes what
    surrounds the targets of an attack that requires the rest of the set.
    """
    federation, learners = attacked.federation, list(attacked.learners)
    update = Update.of_record(attacked.record, round, learners)
    requires, task = attack.requires, federation.task
    own = federation.split().held_out if "own examples" in requires else None
    known = {
        which: held_inputs(federation, learners, round, which)
        for which in SETS
        if "other set" in requires and attack.asks != which
    }
    return Observation(
        model=federation.model,
        rule=federation.rule,
        parameters=update.sent,
        gradients=update.gradients(),
        ways=task.ways,
        shots=task.shots,
        queries=task.queries,
        known_support=known.get("support"),
        known_query=known.get("query"),
        classes=held_classes(federation, learners, round) if "classes" in requires else None,
        own_examples=None if own is None else inputs(federation, own),
        own_labels=None if own is None else federation.examples().labels[own],
        defenses=federation.defenses if "defenses" in requires else None,
        rest=rest_of_sets(federation, truth, round, attack.asks)
        if truth is not None and requires >= _SURROUNDED
        else None,
        mean_of=update.mean_of,
        input_shape=federation.examples().input_shape,
    )
