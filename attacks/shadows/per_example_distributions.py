"""Per-target distributions of a statistic among learners with and without the target (Carlini et al. 2022)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Variant = Literal["online", "offline", "learners"]


@dataclass(frozen=True)
class Samples:
    """The observed `statistic (T,)` of T targets, and its values for S other learners, S at least 2.

    `outside (T, S)` are values for learners that do not hold the target, `inside (T, S)` for those that do, or `None`
    if no learner with the target is simulated.
    """

    statistic: Tensor
    outside: Tensor
    inside: Tensor | None


def per_example_scores(samples: Samples) -> Tensor:
    """Return each target's log-likelihood ratio, or its z-score among `outside` if `inside` is `None`, `(T,)`.

    The distributions are normal, with means of each target and one variance, pooled over all targets and both cases:
    with few samples that is the better estimate (Carlini et al. 2022). With one variance the ratio is linear in the
    statistic. It increases if the mean `inside` is above that `outside`, and decreases if it is below, even if that
    is by chance.
    """
    low = samples.outside.mean(dim=1)
    if samples.inside is None:
        return (samples.statistic - low) / samples.outside.var(dim=1).mean().clamp(min=1e-60).sqrt()
    high = samples.inside.mean(dim=1)
    variance = (samples.outside.var(dim=1) + samples.inside.var(dim=1)).mean().clamp(min=1e-60) / 2
    ratio: Tensor = (high - low) / variance * (samples.statistic - (high + low) / 2)
    return ratio
