"""Where a defense stands and what it may do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

from torch import Tensor

from metaleak.defenses.randomness import RandomSource

Place = Literal["support", "query", "inner", "example", "shared", "aggregate"]
"""The places where a defense can act: four in a learner's computation (Rafiei et al. 2024, section 5), and two more.

`support` and `query` see `{"inputs": (n, C, H, W)}` before anything is computed from them; `inner` sees the gradient
of every inner step, `shared` the meta-gradient that is about to leave, both as named tensors. A defense of the place
`example` decides how much each example contributes to every mean that a rule takes over examples, and what noise that
mean gets: an `ExampleMechanism`. A learner calls no defense of the place `aggregate`: it says what becomes of the
messages of a round between learners and server.
"""

Reading = Literal["support", "curvature", "query", "all", "batch"]
"""The kinds of means over examples by which a rule reads its data.

- `support`: of the support set's gradients, for an inner step;
- `curvature`: of the products of the support set's Hessians with a vector, for the derivative of an inner step;
- `query`: of the query set's gradients;
- `all`: of the gradients of both sets together;
- `batch`: of the gradients of a batch of both sets.
"""

ExampleSet = Literal["support", "query"]
"""The sets of an episode that a guarantee is about."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a gradient's tensors, by name."""


@runtime_checkable
class Defense(Protocol):
    """One thing a learner does to what it computes; also its configuration, a frozen pydantic model.

    Several defenses compose: those of one place act in the order of the experiment file.
    """

    @property
    def place(self) -> Place:
        """Where the defense acts."""
        ...

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return the defended tensors, same names, shapes and dtypes.

        All randomness comes from `random`, which is keyed by (seed or the learner's secret, round, learner, the
        defense's place in the list, inner step): from `random.generator`, or, where a guarantee rests on it, from
        `random.normal`. An `inner` defense is differentiated through by second-order rules, so it must not work in
        place.
        """
        ...


@dataclass(frozen=True)
class AddedNoise:
    """Independent noise of mean 0 on every entry: the last thing that a defense adds, with `deviation` 0 none at all.

    `deviation`, the standard deviation under either `law`, is in the units of the tensors (images: pixels in [0, 1]),
    or, where it is `relative`, in units of the root mean square of all entries to which the noise is added.
    """

    law: Literal["gaussian", "laplace"] = "gaussian"
    deviation: float = 0.0
    relative: bool = False


NO_NOISE = AddedNoise()
"""What a deterministic defense returns as its `noise`."""


@runtime_checkable
class Modeled(Protocol):
    """A defense that tells in which way it is random: its output is `without_noise` of its input, plus its `noise`.

    An attack that knows the defenses computes likelihoods with it. One that is not `Modeled` counts as random in an
    unknown way, even if it is deterministic. One that is also `Accounted`, with Gaussian noise on the shared
    gradient that is not relative, promises that its guarantee is that of the Gaussian mechanism: each release is
    mu-GDP, and so are all releases of a learner together (Dong, Roth and Su 2022).
    """

    def noise(self) -> AddedNoise | None:
        """Return the noise that is added, `NO_NOISE` if nothing is drawn, `None` if it is random in another way."""
        ...

    def without_noise(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors to which the noise is added, same names and shapes: a function of `tensors` alone."""
        ...


def noise_of(defense: Defense) -> AddedNoise | None:
    """Return the noise that `defense` promises to add, or `None` where it promises nothing."""
    return defense.noise() if isinstance(defense, Modeled) else None


@runtime_checkable
class Costed(Protocol):
    """A `shared` defense whose output takes fewer bytes than float32 entries do."""

    def bytes_sent(self, shapes: Shapes) -> int:
        """Return the bytes that carry one learner's defended gradient of these shapes, without Flower's envelope.

        It must hold whatever went into the defense, so that the last defense of a learner tells the cost of all.
        """
        ...


@runtime_checkable
class Accounted(Protocol):
    """A defense with a differential-privacy guarantee, which depends on how often a learner sends."""

    @property
    def delta(self) -> float:
        """The delta of the guarantee."""
        ...

    def for_releases(self, releases: int) -> Self:
        """Return the defense of a learner that takes part in at most `releases` rounds of the run.

        Raises `ValueError` in one line, which begins with the key at fault, when it was set up for fewer.
        """
        ...

    def epsilon_after(self, releases: int) -> float:
        """Return the epsilon at `delta` of all that one learner sends in `releases` rounds; may be infinite."""
        ...


@runtime_checkable
class SharesNoise(Protocol):
    """An `Accounted` defense whose guarantee is about the sum over learners, and not about one learner's message.

    It needs a defense of the place `aggregate` beside it. No other defense may change a learner's message after it,
    and a round counts only where at least `least_learners` answered.
    """

    @property
    def least_learners(self) -> int | None:
        """Return how many learners' shares of the noise the guarantee rests on, `None` before that is known."""
        ...

    def for_learners(self, learners: int) -> Self:
        """Return the defense of a learner of a federation in which at least so many `learners` answer in each round.

        Raises `ValueError` in one line, which begins with the key at fault, when it was set up for more.
        """
        ...


@runtime_checkable
class ExampleMechanism(Protocol):
    """A defense of the place `example`: what a rule gets in place of a mean over examples.

    The rule computes each example's contribution, a vector, multiplies it by its entry of `weights` and adds up; what
    `noisy_mean` makes of the sum is all that the rule ever learns of these examples. One that is also `Accounted`
    promises that its guarantee is that of Gaussian mechanisms: each mean is mu-GDP in every example, and so is all
    that a learner sends (Dong, Roth and Su 2022).

    The class attribute `isotropic_noise = True` is optional. It promises that the noise of a mean is independent
    normal numbers of one deviation on all entries, whatever the tensors' shapes: these are the same in every
    orthonormal basis, so that a rule may take a mean in the coordinates of one. A derived class must set it again.
    """

    def for_readings(self, readings: Mapping[Reading, int]) -> Self:
        """Return the mechanism of a rule that takes so many means of each kind in one round.

        Raises `ValueError` in one line, which begins with the key at fault, when it was set up for others.
        """
        ...

    def weights(self, norms: Tensor, reading: Reading) -> Tensor:
        """Return the factors `(n,)`, at least 0, for contributions of these L2 `norms (n,)`; 0 where one is NaN."""
        ...

    def noisy_mean(
        self, total: dict[str, Tensor], count: int, reading: Reading, random: RandomSource
    ) -> dict[str, Tensor]:
        """Return the mean over `count` examples, with noise, of what adds up to `total`; same shapes and dtypes.

        `total` is needed no longer and may be written over.
        """
        ...


def has_isotropic_noise(mechanism: ExampleMechanism) -> bool:
    """Return whether the class of `mechanism` promises noise that is the same in every orthonormal basis."""
    return vars(type(mechanism)).get("isotropic_noise", False) is True


@runtime_checkable
class CountsNorms(Protocol):
    """An `ExampleMechanism` whose clipping norm can adapt to the norms that it meets."""

    def clip_fall(self, norms: Tensor, reading: Reading, random: RandomSource) -> float | None:
        """Return, with noise, by how much the logarithm of the clipping norm should fall.

        `norms (n,)` are those of the contributions to one mean. `None` where the clipping norm does not adapt to
        such means.
        """
        ...
