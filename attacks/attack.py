"""The protocols of an attack: the attacked set, the adversary's required knowledge, inputs and results."""

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
    """T targets, each an example and a learner: was the example in the learner's attacked set?

    `examples (T, ...)`: images as floats in [0, 1], `(T, C, H, W)`, or tokens; `rows (T,)` int64: indices of the
    learners in the observation; `positions (T,)` int64: the label positions in [0, ways) under which the learner
    would hold the example.
    """

    examples: Tensor
    rows: Tensor
    positions: Tensor

    def at(self, places: Tensor | slice) -> "Targets":
        """Return the targets at these `places`, indices or a slice."""
        return Targets(self.examples[places], self.rows[places], self.positions[places])

    def places_of(self, row: int) -> Tensor:
        """Return the indices `(n,)` int64 of the targets of the learner in this `row`, ascending."""
        return torch.nonzero(self.rows == row).flatten()

    def by_learner(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the row of each learner that has targets, ascending, and the indices of its targets."""
        for row in torch.unique(self.rows).tolist():
            yield row, self.places_of(row)

    def and_then(self, others: "Targets") -> "Targets":
        """Return these targets followed by the `others`."""
        return Targets(
            torch.cat([self.examples, others.examples]),
            torch.cat([self.rows, others.rows]),
            torch.cat([self.positions, others.positions]),
        )


@dataclass(frozen=True)
class Answers(Tensors):
    """The result of a membership attack: `scores (T,)`, higher for "member", and intermediate results.

    Only the order of the scores is evaluated. Few scores are calibrated: the span test maximizes over unknowns, and
    reconstructions give distances. The evaluation therefore never adds up scores of several rounds; see
    `AsksOverRounds` for attacks that combine rounds themselves.

    `reconstructions (T, C, H, W)` has a reconstruction for each target (`None` for attacks without images);
    `statistics` are further per-target numbers `(T,)` by name, such as the matching loss.
    """

    scores: Tensor
    reconstructions: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstructions(Tensors):
    """Reconstructed sets: `examples (L, n, ...)` of the L learners of an observation, in any order.

    Examples have the format of model inputs: images are floats `(C, H, W)` in [0, 1], tokens are int64 `(T,)`. `n`
    need not be the size of a learner's set. `confidence (L, n)` is higher where the attack is more certain.
    """

    examples: Tensor
    confidence: Tensor


@runtime_checkable
class Attack(Protocol):
    """The members of every attack, which is its own configuration, usually a frozen pydantic model.

    An attack also implements `AsksMembership`, `Reconstructs`, or both; if it only reconstructs, membership is scored
    by the nearest reconstruction, see `nearest_reconstruction`. Two class attributes are optional. With
    `on_any_device = True` the attack computes on the device of the observation's and the targets' tensors, which may
    be a GPU; other attacks are given tensors on the CPU. With `takes_parts = True` it also works if learners share
    only some parameters, those in `observation.gradients`.
    """

    @property
    def asks(self) -> Literal["query", "support"]:
        """Which of the learners' two sets is attacked."""
        ...

    @property
    def requires(self) -> frozenset[Capability]:
        """The capabilities that the adversary must have, beyond the messages that the server sees."""
        ...


@runtime_checkable
class AsksMembership(Attack, Protocol):
    """An attack that scores how likely it is that learners held given examples."""

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return a score for every target; the same arguments give the same scores."""
        ...


@runtime_checkable
class Reconstructs(Attack, Protocol):
    """An attack that reconstructs the examples that learners held."""

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return reconstructions of the attacked set of every learner in the observation.

        The same arguments give the same reconstructions.
        """
        ...


@runtime_checkable
class Selective(Protocol):
    """An attack on some models only; an attack without this method applies to all."""

    def applies_to(self, model: Model) -> bool:
        """Return whether the attack applies to gradients of `model`."""
        ...


@runtime_checkable
class DefenseSelective(Protocol):
    """An attack that applies under some defenses only; an attack without this method applies under all."""

    def reason_against(self, defenses: tuple[Defense, ...]) -> str | None:
        """Return in one line why the attack does not apply under `defenses`, or `None` if it does."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """An attack whose targets can be scored in parts, so that finished parts survive an interruption."""

    def parts(self, observation: Observation, targets: Targets) -> Sequence[Tensor]:
        """Return the indices `(n,)` int64 of the targets that are computed together, each target in one part.

        The scores of one part alone must be those that the attack gives for all targets together.
        """
        ...


def joined(parts: Sequence[Tensor], answers: Sequence[Answers]) -> Answers:
    """Return the answers for all targets from those for each of `parts` (indices), at least one."""
    order = torch.argsort(torch.cat(list(parts)))

    def together(values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values))[order]

    made = [one.reconstructions for one in answers if one.reconstructions is not None]
    return Answers(
        together([one.scores for one in answers]),
        together(made) if made else None,
        {name: together([one.statistics[name] for one in answers]) for name in answers[0].statistics},
    )
