"""What an offline adversary holds, what it asks about, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules import Rule
from metaleak.defenses import Defense

Knowledge = Literal["labels", "classes", "other set", "own images", "defenses", "rest of the set", "both candidates"]
"""What an adversary may hold beside what the server sees: a threat model is a set of these.

`labels`: every image's position in its task is known. `classes`: which class stands at each position. `other set`:
the images of the set that is not asked about. `own images`: labeled images of the same kind that no learner holds.
`defenses`: what the learners do to what they send, with all settings. `rest of the set`: of the set that is asked
about, all images but the one whose membership is asked. `both candidates`: that in its place stands either the asked
image or one other, which is known, too. With all of these it is the adversary of the definition of differential
privacy, who knows everything but which of two neighbors it looks at.
"""

Progress = Callable[[int, int], None]
"""Called with (done, total) as an attack goes on."""


class _Tensors:
    """A dataclass of tensors and dictionaries of tensors, beside other things."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same with all tensors on `device`."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return replace(self, **{name: _moved(value, device) for name, value in found.items()})  # type: ignore[type-var]


def _moved(value: object, device: torch.device | str) -> object:
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    if isinstance(value, Tensor) and value.ndim and value.stride(0) == 0:
        # Rows that are one and the same travel as one.
        return value[:1].to(device).expand_as(value)
    return value.to(device) if isinstance(value, Tensor | _Tensors) else value


@dataclass(frozen=True)
class Rest(_Tensors):
    """What is known around T questions, row for row, by an adversary who knows everything but the asked image.

    `images (T, n, C, H, W)`: the set that is asked about, ordered by position, with zeros in the place `slots (T,)`
    int64, where the learner holds either the asked image or the alternative; `alternatives (T, C, H, W)` are of the
    same class. Which of the two it holds is the question.
    """

    images: Tensor
    slots: Tensor
    alternatives: Tensor


@dataclass(frozen=True)
class Observation(_Tensors):
    """The meta-gradients of L learners in one round, and what the threat model lets the adversary know beside them.

    `parameters` are what the server sent; `gradients` what it received, stacked `(L, ...)`. The task's shape is
    known. All else is given only where the attack `assumes` it: `known_support (L, ways*shots, C, H, W)` and
    `known_query (L, ways*queries, C, H, W)`, ordered by position; `classes (L, ways)` int64;
    `own_images (N, C, H, W)` in [0, 1] with the classes `own_labels (N,)`; `defenses`, of which an empty tuple says
    that there are none; the `rest` of the set around every target.

    `mean_of` is the number of learners over which each gradient is the mean: 1 where the server saw each one's own.
    Otherwise, under secure aggregation, every row is the same mean over that many learners, of which the L are some.
    """

    model: Model
    rule: Rule
    parameters: Parameters
    gradients: Parameters
    ways: int
    shots: int
    queries: int
    known_support: Tensor | None = None
    known_query: Tensor | None = None
    classes: Tensor | None = None
    own_images: Tensor | None = None
    own_labels: Tensor | None = None
    defenses: tuple[Defense, ...] | None = None
    rest: Rest | None = None
    mean_of: int = 1


@dataclass(frozen=True)
class Targets(_Tensors):
    """T questions "was this image in the set of that learner?".

    `images (T, C, H, W)` floats in [0, 1]; `rows (T,)` int64 indices of the learners in the observation;
    `positions (T,)` int64 label positions in [0, ways) under which the learner would hold the image.
    """

    images: Tensor
    rows: Tensor
    positions: Tensor

    def at(self, places: Tensor | slice) -> "Targets":
        """Return the questions at these places."""
        return Targets(self.images[places], self.rows[places], self.positions[places])


@dataclass(frozen=True)
class Answers(_Tensors):
    """An attack's answers: `scores (T,)`, higher means "member", and what it made on the way.

    Only the order of the scores is evaluated. Those of one target in several rounds are added up, which weighs the
    rounds rightly only if the scores are log-likelihood ratios. Few attacks give those: `LikelihoodRatio`, and
    `Alignment` as far as its shadow learners are like the learners. The scores of the others are not calibrated (the
    span test maximizes over what it does not know, reconstructions give distances): a round in which they spread
    more counts more, whether it tells more or not.

    `reconstructions (T, C, H, W)` show what each target image became (`None` for attacks that make no image);
    `statistics` are further per-target numbers `(T,)` by name, such as the matching loss.
    """

    scores: Tensor
    reconstructions: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Attack(Protocol):
    """A membership attack on meta-gradients; also its configuration, a frozen pydantic model.

    An attack's class may say `on_any_device = True`: it computes where the observation's and the targets' tensors
    lie, which may then be a GPU. Others are given tensors on the CPU.
    """

    @property
    def asks(self) -> Literal["query", "support"]:
        """Which of the learner's two sets the attack asks about."""
        ...

    @property
    def assumes(self) -> frozenset[Knowledge]:
        """The threat model: what the adversary holds beside the sent parameters and the received gradients."""
        ...

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return an answer for every target; the same arguments give the same answers."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """An attack whose targets can be asked about part by part: what is done is kept when it is interrupted."""

    def parts(self, observation: Observation, targets: Targets) -> Sequence[Tensor]:
        """Return the places `(n,)` int64 of the targets that are computed together, each target in one part.

        Asked about one part alone, the attack answers as when it is asked about all.
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
