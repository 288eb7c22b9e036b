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
    """One of the rounds in which L learners are attacked, and how T questions about them stand in it.

    `number` is the round's in the record. `rows (L,)` int64 gives each learner's row in the `observation`, -1 where
    it did not answer. `positions (T,)` int64 gives the label position under which each target would be held, -1
    where this round cannot hold it: its learner did not answer, or the learner's task has no such class.

    `chances (L,)` float64, in (0, 1], are how likely it is that an image of a learner's class is in the set that is
    asked about: below 1 where it draws new episodes from a larger shard in every round. `None`: all sets last.
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
        """Return for each target how likely its learner would have it in its set, `(T,)` float64."""
        if self.chances is None:
            return torch.ones(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
        return self.chances[targets.rows]

    def asked(self, targets: Targets) -> tuple[Tensor, Targets]:
        """Return the places `(t,)` of the targets that this round can hold, and these, by its rows and positions."""
        places = torch.nonzero(self.positions >= 0).flatten()
        some = targets.at(places)
        return places, Targets(some.examples, self.rows[some.rows], self.positions[places])


Rounds = Sequence[Round]
"""Rounds in ascending order, to be gone through as often as needed: each is read when it is asked for.

An attack holds one at a time, so that its memory does not grow with their number: `rounds[number]` is passed on to a
function and not kept, nor is anything of the size of its gradients.
"""


Evidence = Mapping[str, Tensor]
"""What was computed of one round: tensors by name, none of the size of its gradients."""


@runtime_checkable
class KeepsEvidence(Protocol):
    """Rounds that keep what is computed of each, so that an attack that was interrupted does not compute it again."""

    def kept(self, place: int, find: Callable[[Round], Evidence]) -> Evidence:
        """Return what `find` computes of the round at `place`, or what it computed of it before."""
        ...


def evidence_of(rounds: Rounds, place: int, find: Callable[[Round], Evidence]) -> Evidence:
    """Return what `find` computes of the round at `place`, kept where the rounds keep it.

    What it computes must follow from the attack, the seed, the targets and the round; call it once for a round.
    """
    return rounds.kept(place, find) if isinstance(rounds, KeepsEvidence) else find(rounds[place])


@runtime_checkable
class AsksOverRounds(AsksMembership, Protocol):
    """An attack that says of examples how likely a learner held them in any of several rounds, from all of them.

    How it weighs the rounds is its own matter: scores of single rounds are not comparable unless they are
    log-likelihood ratios. Its class may say `needs_lasting_sets = True`: it is *not applicable* to several rounds
    where learners draw new episodes.
    """

    def reason_against_rounds(self) -> str | None:
        """Return in one line why the attack, as it is set, sees one round alone, or `None` where it sees several."""
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
        """Return what it makes of the one set of every learner of the rounds' `rows`.

        The rounds ask about no target: their `positions` are empty. The same arguments give the same answer.
        """
        ...
