"""The protocols of an attack: which set it is about, what the adversary must know, and what it returns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from metaleak.attacks.observation import Observation
from metaleak.attacks.tensors import Tensors
from metaleak.attacks.threat_model import Capability
from metaleak.clients.models import Model
from metaleak.defenses import Defense

Progress = Callable[[int, int], None]
"""Called with (done, total) while an attack computes."""


@dataclass(frozen=True)
class Targets(Tensors):
    """T questions "was this example in the set of that learner?".

    `examples (T, ...)`, images as floats in [0, 1] `(T, C, H, W)`; `rows (T,)` int64 indices of the learners in the
    observation;
    `positions (T,)` int64 label positions in [0, ways) under which the learner would hold the example.
    """

    examples: Tensor
    rows: Tensor
    positions: Tensor

    def at(self, places: Tensor | slice) -> "Targets":
        """Return the questions at these places."""
        return Targets(self.examples[places], self.rows[places], self.positions[places])

    def places_of(self, row: int) -> Tensor:
        """Return the places `(n,)` int64 of the questions about the learner in this row, ascending."""
        return torch.nonzero(self.rows == row).flatten()

    def by_learner(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the row of each learner that is asked about, ascending, and the places of the questions about it."""
        for row in torch.unique(self.rows).tolist():
            yield row, self.places_of(row)

    def and_then(self, others: "Targets") -> "Targets":
        """Return these questions and the `others` behind them."""
        return Targets(
            torch.cat([self.examples, others.examples]),
            torch.cat([self.rows, others.rows]),
            torch.cat([self.positions, others.positions]),
        )


@dataclass(frozen=True)
class Answers(Tensors):
    """An attack's answers: `scores (T,)`, higher means "member", and intermediate results.

    Only the order of the scores is evaluated. Few are calibrated: the span test maximizes over unknowns, and
    reconstructions give distances. Scores of several rounds are therefore never added up by the evaluation; see
    `AsksOverRounds` for attacks that weigh rounds themselves.

    `reconstructions (T, C, H, W)` show what each target image became (`None` for attacks that make no image);
    `statistics` are further per-target numbers `(T,)` by name, such as the matching loss.
    """

    scores: Tensor
    reconstructions: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstructions(Tensors):
    """The sets that an attack rebuilt: `examples (L, n, ...)` of the L learners of an observation, in any order.

    Examples are as models take them: images as floats `(C, H, W)` in [0, 1], tokens as int64 `(T,)`. `n` need not
    be the number that a learner holds. `confidence (L, n)`: higher where the attack is more certain of an example.
    """

    examples: Tensor
    confidence: Tensor


@runtime_checkable
class Attack(Protocol):
    """The members of every attack. An attack is its own configuration, usually a frozen pydantic model.

    Besides, it implements `AsksMembership`, `Reconstructs`, or both; of one that only reconstructs, membership is
    judged by the nearest reconstruction, see `nearest_reconstruction`. Two class attributes are optional. With
    `on_any_device = True` it computes on the device of the observation's and the targets' tensors, which may then be
    a GPU; others are given tensors on the CPU. With `takes_parts = True` it also works where learners share only some
    parameters: those in `observation.gradients`.
    """

    @property
    def asks(self) -> Literal["query", "support"]:
        """Which of the learner's two sets the attack asks about."""
        ...

    @property
    def requires(self) -> frozenset[Capability]:
        """The capabilities that the adversary must have, beyond the messages that the server sees."""
        ...


@runtime_checkable
class AsksMembership(Attack, Protocol):
    """An attack that scores how likely a learner held given examples."""

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return an answer for every target; the same arguments give the same answers."""
        ...


@runtime_checkable
class Reconstructs(Attack, Protocol):
    """An attack that rebuilds what learners held."""

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return reconstructions of the set of every learner in the observation.

        The same arguments give the same reconstructions.
        """
        ...


@runtime_checkable
class Selective(Protocol):
    """An attack on some models only; an attack without this method is made on all."""

    def applies_to(self, model: Model) -> bool:
        """Return whether the attack can be made on gradients of `model`."""
        ...


@runtime_checkable
class DefenseSelective(Protocol):
    """An attack under some defenses only; an attack without this method is made under all."""

    def reason_against(self, defenses: tuple[Defense, ...]) -> str | None:
        """Return in one line why the attack cannot be made under `defenses`, or `None` when it can."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """An attack whose targets can be answered in parts, so that finished parts survive an interruption."""

    def parts(self, observation: Observation, targets: Targets) -> Sequence[Tensor]:
        """Return the places `(n,)` int64 of the targets that are computed together, each target in one part.

        The answers to one part alone are those that the attack gives when it is asked about all.
        """
        ...


def joined(parts: Sequence[Tensor], answers: Sequence[Answers]) -> Answers:
    """Return the answers to all targets from those to the targets at the places of each of `parts`, at least one."""
    order = torch.argsort(torch.cat(list(parts)))

    def together(values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values))[order]

    made = [one.reconstructions for one in answers if one.reconstructions is not None]
    return Answers(
        together([one.scores for one in answers]),
        together(made) if made else None,
        {name: together([one.statistics[name] for one in answers]) for name in answers[0].statistics},
    )
