"""The Gaussian mechanism: a defense with a guarantee."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from metaleak.defenses.accounting import gaussian_epsilon
from metaleak.defenses.adaptive_clip import CLIP_NAME
from metaleak.defenses.budget import Budget
from metaleak.defenses.defense import AddedNoise
from metaleak.defenses.randomness import RandomSource


class GaussianMechanism(Budget):
    """Clips a learner's meta-gradient to the L2 norm `clip`, all tensors as one vector, and adds Gaussian noise.

    Every entry gets independent noise with standard deviation `noise_multiplier` times the sensitivity, 2 `clip`: two
    vectors of norm at most `clip` are at most that far apart.

    Give `noise_multiplier`, or the `epsilon` that a learner may spend in the whole run. The latter takes `releases`,
    the rounds in which one learner takes part; an experiment fills it in through `for_releases`.

    With `adapt` the server chooses the clipping norm of each round (`AdaptiveClip`). Each message then has one more
    entry, a noisy bit that says whether the gradient's norm was at most the clipping norm. This bit is paid for by
    slightly more noise on the gradient, so that epsilon stays the same.

    Formal guarantee
        What one learner sends in k rounds is (`epsilon_after(k)`, `delta`)-differentially private (Balle and Wang
        2018, theorem 8) against a server that sees each learner's own messages and knows who was sampled: the local
        model. So neither sampling nor averaging over learners makes it better, and every round in which the learner
        takes part counts. Other defenses that act before or after the mechanism do not weaken the guarantee.

    Neighbors
        Two inputs are neighbors when one unit is *replaced*. `unit: learner`: all that the learner holds, by any
        other data. `unit: image`: one image that no other learner holds, by any other. Both have the same sensitivity
        and so the same epsilon: one image of the support set moves the adapted parameters, and with them every
        example's contribution, so that clipping example by example would bound nothing. For an image this is a
        bound and not tight: an episode that leaves the image out, by a draw that the server does not see, tells
        nothing of it. There is no "add or remove": the server sees whether a learner answers, which is not covered.

    What it rests on
        The server cannot compute the noise. It comes from a cryptographic generator (`RandomSource.normal`) under a
        key of 256 bits. On Flower's deployment engine each SuperNode keeps a key of its own. A *simulation* makes
        the keys from the experiment's seed, so that it can be repeated: the guarantee is that of the mechanism, with
        keys that are secret, and not that of a simulation whose seed is published.
        Real numbers: clipping and noise are computed in float64 and only then rounded to the gradient's type; attacks
        on the lowest bits of floating point noise (Mironov 2012) are not considered.

    Example:
        >>> mechanism = GaussianMechanism(clip=1.0, epsilon=8, releases=40)
        >>> round(mechanism.standard_deviation, 3)
        7.592
        >>> round(mechanism.epsilon_after(20), 3)
        5.298
        >>> mechanism.without_noise({"weight": torch.tensor([3.0, -4.0])})
        {'weight': tensor([ 0.6000, -0.8000], dtype=torch.float64)}
        >>> mechanism({"weight": torch.tensor([3.0, -4.0])}, RandomSource.of("secret", 1))["weight"].shape
        torch.Size([2])
    """

    place: Literal["shared"] = "shared"
    clip: Annotated[float, Field(gt=0, le=1e12)]
    unit: Literal["learner", "image"] = "learner"

    @property
    def sensitivity(self) -> float:
        """The largest L2 distance between the clipped vectors of neighbors."""
        return 2 * self.clip

    @property
    def multiplier(self) -> float:
        """The noise multiplier in use.

        Raises `ValueError` when `epsilon` is given and `releases` not yet.
        """
        return self._multiplier_of(1)

    @property
    def standard_deviation(self) -> float:
        """The standard deviation of the noise on every entry, in the gradient's own units."""
        factor = 1.0 if self.adapt is None else self.adapt.mean_factor
        return self.multiplier * factor * self.sensitivity * self.share

    @property
    def share(self) -> float:
        """The fraction of the noise's standard deviation that one learner adds: 1."""
        return 1.0

    @property
    def sent_clip(self) -> float:
        """The clipping norm."""
        return self.clip

    def with_sent_clip(self, norm: float) -> Self:
        """Return the mechanism with another clipping norm."""
        return self.model_copy(update={"clip": norm})

    def epsilon_after(self, releases: int) -> float:
        """Return the epsilon at `delta` of all that one learner sends in `releases` rounds."""
        return gaussian_epsilon(self.multiplier, releases, self.delta)

    def noise(self) -> AddedNoise | None:
        """Return Gaussian noise of the `standard_deviation`; `None` where that changes from round to round."""
        return AddedNoise("gaussian", self.standard_deviation) if self.adapt is None else None

    def without_noise(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `tensors` clipped, in float64."""
        return clipped(tensors, self.clip)

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return `tensors` clipped and noisy; see `clipped` for what happens to which norm."""
        deviation = self.standard_deviation
        noisy = random.noisy_tensors(clipped(tensors, self.clip), deviation)
        sent = {name: value.to(tensors[name].dtype) for name, value in noisy.items()}
        if self.adapt is not None:
            some = next(iter(sent.values()))
            noise = float(random.normal((1,))) * self.multiplier * self.adapt.count_noise * self.share
            fall = self.adapt.fall(float(norm_of(tensors) <= self.clip) + noise)
            sent[CLIP_NAME] = some.new_full((1,), fall)
        return sent


def norm_of(tensors: dict[str, Tensor]) -> float:
    """Return the L2 norm of all `tensors` as one vector, in float64; it may be infinite or NaN."""
    wide = [torch.linalg.vector_norm(value.detach().to(torch.float64)) for value in tensors.values()]
    return float(torch.stack(wide).square().sum().sqrt())


def clipped(tensors: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Return `tensors`, as one vector, scaled down to the L2 norm `clip` where it is larger; in float64.

    | norm                                          | becomes                                         |
    |-----------------------------------------------|-------------------------------------------------|
    | 0                                             | 0                                               |
    | at most `clip`                                | the same vector                                 |
    | larger                                        | the vector of norm `clip` in the same direction |
    | infinite or NaN (any such entry, or overflow) | 0, so that the bound holds for every input      |

    Example:
        >>> clipped({"weight": torch.tensor([3.0, -4.0])}, 1.0)
        {'weight': tensor([ 0.6000, -0.8000], dtype=torch.float64)}
    """
    wide = {name: value.detach().to(torch.float64) for name, value in tensors.items()}
    norm = norm_of(wide)
    if not norm < float("inf"):
        return {name: torch.zeros_like(value) for name, value in wide.items()}
    if norm <= clip:
        return wide
    return {name: value * (clip / norm) for name, value in wide.items()}
