"""Several rounds of the same learners, and the protocols of attacks on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from metaleak.attacks.attack import Answers, AsksMembership, Progress, Reconstructions, Reconstructs, Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.tensors import Tensors


@dataclass(frozen=True)
class Round(Tensors):
    """One of the rounds in which L learners are attacked, with the label positions of T targets in it.

    `number` is the round's number in the record. `rows (L,)` int64 is each learner's row in the `observation`, -1 if
    it did not answer. `positions (T,)` int64 is the label position under which each target would be held, -1 if it
    cannot be in this round's set, because its learner did not answer or the learner's task does not have its class.

    `chances (L,)` float64, in (0, 1], is the probability that an image of the learner's shard is in this round's set,
    below 1 if the learner draws a new episode from a larger shard in every round. `None`: the sets are the same in
    all rounds.
    """

    number: int
    observation: Observation
    rows: Tensor
    positions: Tensor
    chances: Tensor | None = None

    @property
    def fixed_sets(self) -> bool:
        """Whether every learner has the same sets in all rounds."""
        return self.chances is None or bool((self.chances == 1).all())

    def chances_of(self, targets: Targets) -> Tensor:
        """Return the probability that an image of each target's learner is in this round's set, `(T,)` float64."""
        if self.chances is None:
            return torch.ones(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
        return self.chances[targets.rows]

    def asked(self, targets: Targets) -> tuple[Tensor, Targets]:
        """Return the indices `(t,)` of the targets that can be in this round's sets, and these with its rows."""
        places = torch.nonzero(self.positions >= 0).flatten()
        some = targets.at(places)
        return places, Targets(some.examples, self.rows[some.rows], self.positions[places])


Rounds = Sequence[Round]
"""Rounds in ascending order, each read from the record whenever it is accessed.

An attack should keep one at a time, so that its memory does not grow with their number: pass `rounds[number]` to a
function, and keep neither it nor anything of the size of its gradients.
"""


Evidence = Mapping[str, Tensor]
"""The result that an attack computes from one round: tensors by name, none of the size of its gradients."""


@runtime_checkable
class KeepsEvidence(Protocol):
    """Rounds that store the evidence of each, so that an interrupted attack does not compute it again."""

    def kept(self, place: int, find: Callable[[Round], Evidence]) -> Evidence:
        """Return the result of `find` for the round at index `place`, or the stored result of an earlier call."""
        ...


def evidence_of(rounds: Rounds, place: int, find: Callable[[Round], Evidence]) -> Evidence:
    """Return the result of `find` for the round at index `place`, stored if the rounds can store it.

    The result must depend only on the attack, the seed, the targets and the round. Call this once per round.
    """
    return rounds.kept(place, find) if isinstance(rounds, KeepsEvidence) else find(rounds[place])


@runtime_checkable
class AsksOverRounds(AsksMembership, Protocol):
    """An attack that scores how likely it is that learners held given examples in any of several rounds.

    The attack combines the rounds itself, since scores of single rounds are not comparable unless they are
    log-likelihood ratios. With the class attribute `needs_fixed_sets = True` it is *not applicable* to several rounds
    in which learners draw new episodes.
    """

    def reason_against_rounds(self) -> str | None:
        """Return in one line why the attack with these settings uses one round only, or `None` if it uses several."""
        ...

    def over_rounds(self, rounds: Rounds, targets: Targets, seed: int, progress: Progress | None = None) -> Answers:
        """Return a score for every target, whose `rows` are indices into the rounds' `rows`.

        A target that cannot be in any round's set has the score 0. The same arguments give the same scores.
        """
        ...


@runtime_checkable
class ReconstructsOverRounds(Reconstructs, Protocol):
    """An attack that reconstructs the sets that learners held in all of several rounds."""

    def reconstruct_over_rounds(self, rounds: Rounds, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return reconstructions of the attacked set of every learner in the rounds' `rows`.

        The rounds have no targets: their `positions` are empty. The same arguments give the same reconstructions.
        """
        ...
