"""Where a defence stands and what it may do."""

from collections.abc import Mapping
from typing import Literal, Protocol, Self, runtime_checkable

from torch import Tensor

from metaleak.defenses.randomness import RandomSource

Place = Literal["support", "query", "inner", "shared", "aggregate"]
"""The places where a defence can act: four in a learner's computation (Rafiei et al. 2024, section 5), one behind it.

`support` and `query` see `{"images": (n, C, H, W)}` before anything is computed from them; `inner` sees the gradient
of every inner step, `shared` the meta-gradient that is about to leave, both as named tensors. A learner calls no
defence of the place `aggregate`: it says what becomes of the messages of a round between learners and server.
"""

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a gradient's tensors, by name."""


@runtime_checkable
class Defence(Protocol):
    """One thing a learner does to what it computes; also its configuration, a frozen pydantic model.

    Several defences compose: those of one place act in the order of the experiment file.
    """

    @property
    def place(self) -> Place:
        """Where the defence acts."""
        ...

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return the defended tensors, same names, shapes and dtypes.

        All randomness comes from `random`, which is keyed by (seed or the learner's secret, round, learner, the
        defence's place in the list, inner step): from `random.generator`, or, where a guarantee rests on it, from
        `random.normal`. An `inner` defence is differentiated through by second-order rules, so it must not work in
        place.
        """
        ...


@runtime_checkable
class Costed(Protocol):
    """A `shared` defence whose output takes fewer bytes than float32 entries do."""

    def bytes_sent(self, shapes: Shapes) -> int:
        """Return the bytes that carry one learner's defended gradient of these shapes, without Flower's envelope.

        It must hold whatever went into the defence, so that the last defence of a learner tells the cost of all.
        """
        ...


@runtime_checkable
class Accounted(Protocol):
    """A defence with a differential-privacy guarantee, which depends on how often a learner sends."""

    @property
    def delta(self) -> float:
        """The delta of the guarantee."""
        ...

    def for_releases(self, releases: int) -> Self:
        """Return the defence of a learner that takes part in at most `releases` rounds of the run.

        Raises `ValueError` in one line, which begins with the key at fault, when it was set up for fewer.
        """
        ...

    def epsilon_after(self, releases: int) -> float:
        """Return the epsilon at `delta` of all that one learner sends in `releases` rounds; may be infinite."""
        ...
