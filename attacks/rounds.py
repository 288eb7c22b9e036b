"""Several rounds of the same learners, as an attack over rounds sees them."""

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
    """One of the rounds in which L learners are attacked, with the rows and positions of T targets in it.

    `number` is the round's in the record. `rows (L,)` int64 gives each learner's row in the `observation`, -1 where
    it did not answer. `positions (T,)` int64 gives the label position under which each target would be held, -1
    where this round cannot hold it: its learner did not answer, or the learner's task has no such class.

    `chances (L,)` float64, in (0, 1]: the probability that an image of the learner's shard is in this round's set,
    below 1 where the learner draws a new episode from a larger shard in every round. `None`: all sets stay the
    same.
    """

    number: int
    observation: Observation
    rows: Tensor
    positions: Tensor
    chances: Tensor | None = None

    @property
    def sets_last(self) -> bool:
        """Whether every learner has the same sets in all rounds."""
        return self.chances is None or bool((self.chances == 1).all())

    def chances_of(self, targets: Targets) -> Tensor:
        """Return for each target the probability that its learner has it in this round's set, `(T,)` float64."""
        if self.chances is None:
            return torch.ones(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
        return self.chances[targets.rows]

    def asked(self, targets: Targets) -> tuple[Tensor, Targets]:
        """Return the places `(t,)` of the targets that this round can hold, and these, by its rows and positions."""
        places = torch.nonzero(self.positions >= 0).flatten()
        some = targets.at(places)
        return places, Targets(some.examples, self.rows[some.rows], self.positions[places])


Rounds = Sequence[Round]
"""Rounds in ascending order; each is read from the record when it is accessed, as often as needed.

An attack keeps one at a time, so that its memory does not grow with their number: pass `rounds[number]` to a
function, and keep neither it nor anything of the size of its gradients.
"""


Evidence = Mapping[str, Tensor]
"""What an attack computed from one round: tensors by name, none of the size of its gradients."""


@runtime_checkable
class KeepsEvidence(Protocol):
    """Rounds that store what is computed from each, so that an interrupted attack does not compute it again."""

    def kept(self, place: int, find: Callable[[Round], Evidence]) -> Evidence:
        """Return what `find` computes from the round at `place`, or the stored result of an earlier call."""
        ...


def evidence_of(rounds: Rounds, place: int, find: Callable[[Round], Evidence]) -> Evidence:
    """Return what `find` computes from the round at `place`, stored if the rounds can store it.

    The result may depend only on the attack, the seed, the targets and the round. Call it once for each round.
    """
    return rounds.kept(place, find) if isinstance(rounds, KeepsEvidence) else find(rounds[place])


@runtime_checkable
class AsksOverRounds(AsksMembership, Protocol):
    """An attack that scores how likely a learner held given examples in any of several rounds.

    The attack weighs the rounds itself, for scores of single rounds are not comparable unless they are
    log-likelihood ratios. With the class attribute `needs_lasting_sets = True` it is *not applicable* to several
    rounds where learners draw new episodes.
    """

    def reason_against_rounds(self) -> str | None:
        """Return in one line why the attack with these settings uses one round only, or `None` if it uses several."""
        ...

    def over_rounds(self, rounds: Rounds, targets: Targets, seed: int, progress: Progress | None = None) -> Answers:
        """Return an answer for every target, whose `rows` count the learners of the rounds' `rows`.

        A target that no round can hold has the score 0. The same arguments give the same answers.
        """
        ...


@runtime_checkable
class ReconstructsOverRounds(Reconstructs, Protocol):
    """An attack that rebuilds from several rounds what learners held in all of them."""

    def reconstruct_over_rounds(self, rounds: Rounds, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return reconstructions of the set of every learner of the rounds' `rows`.

        The rounds ask about no target: their `positions` are empty. The same arguments give the same answer.
        """
        ...
