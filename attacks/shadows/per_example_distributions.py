"""Per-target distributions of a statistic among learners that hold it and that do not (Carlini et al. 2022)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Variant = Literal["online", "offline", "learners"]


@dataclass(frozen=True)
class Samples:
    """The observed `statistic (T,)` of T targets, and its values among S other learners, S at least 2.

    `outside (T, S)` are values from learners that do not hold the target, `inside (T, S)` from those that do, `None`
    where no learner is simulated with it.
    """

    statistic: Tensor
    outside: Tensor
    inside: Tensor | None


def per_example_scores(samples: Samples) -> Tensor:
    """Return each target's log-likelihood ratio, or where `inside` is `None` its deviations above the null, `(T,)`.

    The distributions are normal with each target's own means and one spread, pooled over all targets and both cases:
    from few samples that is the better estimate (Carlini et al. 2022). With one spread the ratio is linear in the
    statistic: it rises where the mean `inside` is above that `outside`, and falls where it is below, even if only by
    chance.
    """
    low = samples.outside.mean(dim=1)
    if samples.inside is None:
        return (samples.statistic - low) / samples.outside.var(dim=1).mean().clamp(min=1e-60).sqrt()
    high = samples.inside.mean(dim=1)
    variance = (samples.outside.var(dim=1) + samples.inside.var(dim=1)).mean().clamp(min=1e-60) / 2
    ratio: Tensor = (high - low) / variance * (samples.statistic - (high + low) / 2)
    return ratio
