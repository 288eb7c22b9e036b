"""What an offline adversary holds, what it asks about, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules import Rule
from metaleak.defenses import Defence

Knowledge = Literal["labels", "classes", "other set", "own images", "defences", "rest of the set", "both candidates"]
"""What an adversary may hold beside what the server sees: a threat model is a set of these.

`labels`: every image's position in its task is known. `classes`: which class stands at each position. `other set`:
the images of the set that is not asked about. `own images`: labelled images of the same kind that no learner holds.
`defences`: what the learners do to what they send, with all settings. `rest of the set`: of the set that is asked
about, all images but the one whose membership is asked. `both candidates`: that in its place stands either the asked
image or one other, which is known, too. With all of these it is the adversary of the definition of differential
privacy, who knows everything but which of two neighbours it looks at.
"""

Progress = Callable[[int, int], None]
"""Called with (done, total) as an attack goes on."""


@dataclass(frozen=True)
class Rest:
    """What is known around T questions, row for row, by an adversary who knows everything but the asked image.

    `images (T, n, C, H, W)`: the set that is asked about, ordered by position, with zeros in the place `slots (T,)`
    int64, where the learner holds either the asked image or the alternative; `alternatives (T, C, H, W)` are of the
    same class. Which of the two it holds is the question.
    """

    images: Tensor
    slots: Tensor
    alternatives: Tensor


@dataclass(frozen=True)
class Observation:
    """The meta-gradients of L learners in one round, and what the threat model lets the adversary know beside them.

    `parameters` are what the server sent; `gradients` what it received, stacked `(L, ...)`. The task's shape is
    known. All else is given only where the attack `assumes` it: `known_support (L, ways*shots, C, H, W)` and
    `known_query (L, ways*queries, C, H, W)`, ordered by position; `classes (L, ways)` int64;
    `own_images (N, C, H, W)` in [0, 1] with the classes `own_labels (N,)`; `defences`, of which an empty tuple says
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
    defences: tuple[Defence, ...] | None = None
    rest: Rest | None = None
    mean_of: int = 1


@dataclass(frozen=True)
class Targets:
    """T questions "was this image in the set of that learner?".

    `images (T, C, H, W)` floats in [0, 1]; `rows (T,)` int64 indices of the learners in the observation;
    `positions (T,)` int64 label positions in [0, ways) under which the learner would hold the image.
    """

    images: Tensor
    rows: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Answers:
    """An attack's answers: `scores (T,)`, higher means "member", and what it made on the way.

    The scores of one target in several rounds are added up, so they should be evidence: log-likelihood ratios or the
    like.

    `reconstructions (T, C, H, W)` show what each target image became (`None` for attacks that make no image);
    `statistics` are further per-target numbers `(T,)` by name, such as the matching loss.
    """

    scores: Tensor
    reconstructions: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Attack(Protocol):
    """A membership attack on meta-gradients; also its configuration, a frozen pydantic model."""

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
