"""Record-level privacy: every mean over examples that a rule takes is a Gaussian mechanism in each example."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from metaleak.defenses.accounting import gaussian_epsilon
from metaleak.defenses.budget import Budget
from metaleak.defenses.defense import ExampleSet, Reading
from metaleak.defenses.randomness import RandomSource

_MARGIN = 1 - 1e-5
"""Sums over examples are rounded to float32: the norm is held this much below the bound."""

_TINY = torch.finfo(torch.float32).tiny

SENT: tuple[Reading, ...] = ("query", "all", "batch")
"""The means of which a message is made."""

_Clip = Annotated[float, Field(gt=0, le=1e12)]

_READ_BY: Mapping[ExampleSet, tuple[Reading, ...]] = {
    "support": ("support", "curvature", "all", "batch"),
    "query": ("query", "all", "batch"),
}


class RecordLevel(Budget):
    """Clips the contribution of every example to every mean, and adds Gaussian noise to that mean (DP-SGD).

    The *task-global* setting of Li et al. 2020 ("Differentially Private Meta-Learning"): the inner steps are those of
    DP-SGD (Abadi et al. 2016), and the outer gradient, at the adapted parameters, is taken in the same way. A
    contribution is clipped to the L2 norm `clip`, all tensors as one vector (`support_clip`, `curvature_clip` and
    `query_clip` where the means of that kind need another one). The mean over n examples gets independent noise on
    every entry, with standard deviation `noise_multiplier` times the sensitivity, 2 clip / n.

    Give `noise_multiplier`, one for all means, or the `epsilon` that the run may cost each example of either set.
    The latter takes `releases`, the rounds in which one learner takes part, and `readings`, how many means of each
    kind the rule takes a round; an experiment fills them in. Each set then gets the noise that spends the whole of
    `epsilon` on it.

    With `adapt` the server chooses the clipping norm of what is sent (`query_clip`, or `clip` where a rule has no
    query set). Each mean then comes with the noisy fraction of the norms that were at most that (`AdaptiveClip`).

    Formal guarantee
        What one learner sends in k rounds is (`epsilon_after(k)`, `delta`)-differentially private in each example,
        against a server that sees the learner's own messages, knows who was sampled, and knows which examples stand
        in which episode. A rule reads its examples through the noisy means alone and all else it does is
        post-processing: the support set is protected by the noise of the inner steps, the query set by that of the
        outer mean, at adapted parameters that do not depend on the query set. Means of one set compose, over the
        steps and the rounds, each of which may depend on what was released before: k means of multiplier z are
        (sqrt(k) / z)-GDP (Dong, Roth and Su 2022, corollary 3.3). Where episodes are drawn anew in every round an
        example is in one of the sets or in none, so that a round costs it at most the larger of the two epsilons.

    Neighbors
        Two learners are neighbors when one image is *replaced* by any other; positions and the sizes of the sets are
        public. An image that stands in several learners' shards is protected in each of them by itself.

    What it rests on
        The noise is the learner's secret (`RandomSource.normal`), as for the Gaussian mechanism. As there, the
        guarantee is proven for real numbers and not for floating point. Each example is computed by itself: a model
        in which the examples of a batch influence one another, by batch normalization for instance, gets batches of
        one example.

    Example:
        >>> mechanism = RecordLevel(clip=1.0, epsilon=8, releases=40, readings={"support": 1, "query": 1})
        >>> mechanism.weights(torch.tensor([0.5, 2.0, float("nan")]), "query")
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
        >>> round(mechanism.standard_deviation("query", count=75), 4)
        0.1012
        >>> {name: round(epsilon, 3) for name, epsilon in mechanism.epsilons_after(40).items()}
        {'support': 8.0, 'query': 8.0}
    """

    isotropic_noise: ClassVar[bool] = True

    place: Literal["example"] = "example"
    clip: _Clip = 1.0
    support_clip: _Clip | None = None
    curvature_clip: _Clip | None = None
    query_clip: _Clip | None = None
    readings: dict[Reading, Annotated[int, Field(ge=1)]] | None = None

    def clip_of(self, reading: Reading) -> float:
        """Return the L2 norm to which contributions to such a mean are clipped."""
        own: float | None = getattr(self, f"{reading}_clip", None)
        return self.clip if own is None else own

    def multiplier(self, reading: Reading) -> float:
        """Return the noise multiplier of such a mean.

        Raises `ValueError` when `epsilon` is given, and `releases` or `readings` not yet.
        """
        if self.epsilon is None:
            return self._multiplier_of(1)
        return self._multiplier_of(max(self.means_a_round(one) for one, read in _READ_BY.items() if reading in read))

    def standard_deviation(self, reading: Reading, count: int) -> float:
        """Return the standard deviation of the noise on every entry of such a mean over `count` examples."""
        factor = self.adapt.mean_factor if self.adapt is not None and reading in SENT else 1.0
        return self.multiplier(reading) * factor * 2 * self.clip_of(reading) / count * self.share(reading)

    def share(self, reading: Reading) -> float:
        """Return the fraction of the noise's standard deviation that one learner adds: 1."""
        return 1.0

    @property
    def sent_clip(self) -> float:
        """The clipping norm of the means that are sent."""
        return self.clip_of("query")

    def with_sent_clip(self, norm: float) -> Self:
        """Return the mechanism with another `sent_clip`; the clipping norms of the support set stay as they are."""
        kept = {f"{one}_clip": self.clip_of(one) for one in ("support", "curvature")}
        return self.model_copy(update={**kept, "clip": norm, "query_clip": norm})

    def clip_fall(self, norms: Tensor, reading: Reading, random: RandomSource) -> float | None:
        """Return by how much the logarithm of the clipping norm should fall, by the noisy fraction of small norms.

        `norms (n,)` are those of the contributions to one mean; see `AdaptiveClip`. `None` where the clipping norm
        does not adapt to such means.
        """
        if self.adapt is None or reading not in SENT:
            return None
        part = float((norms <= self.clip_of(reading)).double().mean())
        deviation = self.multiplier(reading) * self.adapt.count_noise / len(norms) * self.share(reading)
        return self.adapt.fall(part + deviation * float(random.normal((1,))))

    def means_a_round(self, examples: ExampleSet) -> int:
        """Return how many means of one round an example of the set contributes to.

        Raises `ValueError` when the `readings` of the rule are not given yet.
        """
        if self.readings is None:
            raise ValueError("readings: must be given: how many means of each kind the rule takes in one round")
        return sum(self.readings.get(reading, 0) for reading in _READ_BY[examples])

    def for_readings(self, readings: Mapping[Reading, int]) -> Self:
        """Return the mechanism of a rule that takes so many means of each kind in one round.

        Raises `ValueError` in one line when it was set up for others.
        """
        if self.readings is not None and self.readings != dict(readings):
            raise ValueError(f"readings: the rule takes {dict(readings)} in one round, got {self.readings}")
        return self.model_copy(update={"readings": dict(readings)})

    def epsilons_after(self, releases: int) -> dict[ExampleSet, float]:
        """Return for each set the epsilon at `delta` of all that one learner sends in `releases` rounds."""
        found: dict[ExampleSet, float] = {}
        for examples, read in _READ_BY.items():
            most = self.means_a_round(examples)
            found[examples] = gaussian_epsilon(self.multiplier(read[0]), releases * most, self.delta) if most else 0.0
        return found

    def epsilon_after(self, releases: int) -> float:
        """Return the larger of `epsilons_after`: that of an example which may be in either set."""
        return max(self.epsilons_after(releases).values())

    def weights(self, norms: Tensor, reading: Reading) -> Tensor:
        """Return the factors `(n,)` that bring contributions of these `norms (n,)` to the clipping norm, in float64.

        1 where a norm is below it, 0 where a norm is infinite or NaN.
        """
        wide, bound = norms.to(torch.float64), self.clip_of(reading) * _MARGIN
        scale = (bound / wide).clamp(max=1.0)
        # Below, float32 rounds a weight by more than the margin; of an infinite norm it is 0, and of NaN not above.
        return torch.where(scale >= _TINY, scale, 0.0)

    def noisy_mean(
        self, total: dict[str, Tensor], count: int, reading: Reading, random: RandomSource
    ) -> dict[str, Tensor]:
        """Return the mean of clipped contributions that add up to `total`, plus noise."""
        return random.noisy_tensors(total, self.standard_deviation(reading, count), 1 / count, over=True)

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return `tensors` as they are: it acts on means over examples."""
        return tensors
