"""The observation that an attack gets: from the record, and from the truth what its adversary knows besides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch

from metaleak.attacks.attack import Attack
from metaleak.attacks.observation import Observation, Update
from metaleak.attacks.rounds import Evidence, Round
from metaleak.attacks.threat_model import Capability
from metaleak.clients.federation import Federation
from metaleak.clients.sharing import told_clip, without_clip
from metaleak.deploy.assess.kept_parts import KeptParts
from metaleak.deploy.assess.truth import (
    SETS,
    Truth,
    chances_of_a_draw,
    held_classes,
    held_inputs,
    held_lengths,
    inputs,
    positions_in,
    rest_of_sets,
)
from metaleak.server.record.reader import Record

_SURROUNDED: frozenset[Capability] = frozenset({"rest of the set", "both candidates"})


@dataclass(frozen=True, eq=False)
class Attacked:
    """The attacked part of a run: `rounds` of its `record`, and the `learners` that answered in any of these."""

    record: Record
    rounds: Sequence[int]
    learners: Sequence[int]
    federation: Federation

    def answered(self, round: int) -> list[int]:
        """Return, in order, the attacked learners that answered in `round`, by themselves or within a mean."""
        there = set(self.record.mean_of(round) or self.record.learners(round))
        return [learner for learner in self.learners if learner in there]

    @property
    def mean_of(self) -> int:
        """The number of learners of whom the server saw only the mean; 1 if it saw each one's gradient."""
        return max(1, *(len(self.record.mean_of(round)) for round in self.rounds))


class RecordedRounds(Sequence[Round]):
    """The attacked rounds, each read from the record when it is used; see `KeepsEvidence`.

    Without `truth` there are no targets.
    """

    def __init__(
        self,
        attacked: Attacked,
        attack: Attack,
        truth: Truth | None,
        device: torch.device,
        parts: KeptParts | None = None,
    ) -> None:
        self._attacked, self._attack, self._truth, self._device = attacked, attack, truth, device
        self._parts = parts

    def __len__(self) -> int:
        return len(self._attacked.rounds)

    @overload
    def __getitem__(self, place: int) -> Round: ...

    @overload
    def __getitem__(self, place: slice) -> list[Round]: ...

    def __getitem__(self, place: int | slice) -> Round | list[Round]:
        """Read one round; raises `RecordError` where it cannot be read."""
        if isinstance(place, slice):
            raise TypeError("rounds are read one at a time")
        attacked, truth, number = self._attacked, self._truth, self._attacked.rounds[place]
        answered = attacked.answered(number)
        row_of = {learner: row for row, learner in enumerate(answered)}
        observation = observe(replace(attacked, learners=answered), number, self._attack, truth)
        return Round(
            number,
            observation,
            torch.tensor([row_of.get(learner, -1) for learner in attacked.learners]),
            torch.empty(0, dtype=torch.int64)
            if truth is None
            else positions_in(attacked.federation, truth, number, answered),
            chances_of_a_draw(attacked.federation, attacked.learners, self._attack.asks),
        ).to(self._device)

    def kept(self, place: int, find: Callable[[Round], Evidence]) -> Evidence:
        """Return what `find` computes from one round, or what was kept of it before an interruption."""
        if self._parts is None:
            return find(self[place])
        part = ("evidence", self._attacked.rounds[place], self._device.type)
        found = self._parts.tensors(part, lambda: find(self[place]))
        return {name: value.to(self._device) for name, value in found.items()}


def observe(attacked: Attacked, round: int, attack: Attack, truth: Truth | None = None) -> Observation:
    """Return what the adversary of `attack` has about the learners in `round`, one row per learner.

    It always has the shared parameters, which it sent, the initialization, which holds the others, the model, the
    rule and the task's shape. Everything else it has only if the attack requires it. Its own images are those that
    are held out for evaluation. Defenses have the clipping norm that was sent in the round. For an attack that
    requires the rest of the set, this is taken from the `truth`.
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
        parameters=without_clip(federation.whole(update.sent)),
        gradients=without_clip(update.gradients()),
        ways=task.ways,
        shots=task.shots * task.episodes_per_message,
        queries=task.queries * task.episodes_per_message,
        episodes=task.episodes_per_message,
        known_support=known.get("support"),
        known_query=known.get("query"),
        lengths=held_lengths(federation, learners, round) if "lengths" in requires else None,
        classes=held_classes(federation, learners, round) if "classes" in requires else None,
        own_examples=None if own is None else inputs(federation, own),
        own_labels=None if own is None else federation.examples().labels[own],
        defenses=told_clip(federation.defenses, update.sent) if "defenses" in requires else None,
        rest=rest_of_sets(federation, truth, round, attack.asks)
        if truth is not None and requires >= _SURROUNDED
        else None,
        mean_of=update.mean_of,
        input_shape=federation.examples().input_shape,
    )
