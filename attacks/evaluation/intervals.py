"""95 % intervals of a rate, from resampled clusters and from several seeds, that cover with few of either."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import betaincinv, expit, logit, ndtr, stdtrit

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

Floats = NDArray[np.float64]

_ERROR = 0.025
"""On either side."""


class Estimate(BaseModel):
    """A rate in [0, 1] with its 95 % interval `[low, high]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Rate
    low: Rate
    high: Rate


def expanded_interval(resampled: ArrayLike, clusters: int) -> tuple[float, float]:
    """Return the expanded percentile interval of a statistic whose `resampled (B,)` values are of n `clusters`.

    Quantiles of the bootstrap are too narrow by as much as its variance has the divisor n and not n - 1, and the
    normal distribution's tails are not those of Student's t: so the quantiles at Phi(-t sqrt(n / (n - 1))) and above
    are taken (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.2). With one cluster
    nothing is expanded.
    """
    error = _ERROR
    if clusters > 1:
        error = float(ndtr(stdtrit(clusters - 1, _ERROR) * math.sqrt(clusters / (clusters - 1))))
    low, high = np.quantile(np.asarray(resampled, np.float64), [error, 1 - error])
    return float(low), float(high)


def of_resampled(value: float, resampled: ArrayLike, clusters: int, units: int) -> Estimate:
    """Return a rate whose `resampled (B,)` values are of n `clusters`, with its interval.

    Student's t with n - 1 degrees of freedom on the logarithm of the odds, so that near 1, where percentiles cover
    far too little, it is skewed as the rate is. The standard error, with the divisor n - 1, is the larger of two: the
    deviation of the resamples' log odds, none of which counts as nearer to 0 or 1 than half a target, and that of the
    resamples, carried to the log odds by the delta method.

    Where resamples do not differ, as those of a rate without a single error, or there is one cluster, it is the
    interval of Clopper and Pearson for `units` (targets of the rarer kind). That takes the targets for independent:
    how much clusters differ cannot be seen then, and where they do the interval is too narrow.
    """
    drawn, slope = np.asarray(resampled, np.float64), value * (1 - value)
    if clusters < 2 or not drawn.std() or slope <= 0:
        return _clopper_pearson(value, units)
    error = max(float(logit(np.clip(drawn, 0.5 / units, 1 - 0.5 / units)).std()), float(drawn.std()) / slope)
    return _on_the_odds(value, error * math.sqrt(clusters / (clusters - 1)), clusters)


def of_crossed(
    value: float, by_first: ArrayLike, by_second: ArrayLike, by_unit: ArrayLike, clusters: tuple[int, int], units: int
) -> Estimate:
    """Return a rate over targets that lie in clusters of two kinds at once, such as points and victims.

    `by_first (B,)`, `by_second (B,)` and `by_unit (B,)` are its values where the clusters of the one kind, those of
    the other, and single targets were resampled. Their variances add up as first plus second minus unit (Cameron,
    Gelbach and Miller 2011, equation 2.10), and count as at least the largest of the three. Otherwise as
    `of_resampled`, with the degrees of freedom of the fewer clusters.
    """
    drawn = [np.asarray(one, np.float64) for one in (by_first, by_second, by_unit)]
    slope = value * (1 - value)
    fewest = min(clusters)
    if fewest < 2 or not any(one.std() for one in drawn) or slope <= 0:
        return _clopper_pearson(value, units)

    def error(deviations: list[float]) -> float:
        corrected = [
            deviation**2 * (count / (count - 1))
            for deviation, count in zip(deviations, (*clusters, max(units, 2)), strict=True)
        ]
        return math.sqrt(max(corrected[0] + corrected[1] - corrected[2], *corrected))

    on_odds = error([float(logit(np.clip(one, 0.5 / units, 1 - 0.5 / units)).std()) for one in drawn])
    return _on_the_odds(value, max(on_odds, error([float(one.std()) for one in drawn]) / slope), fewest)


def over_seeds(estimates: Sequence[Estimate], units: int) -> Estimate:
    """Return the mean of one rate over k seeds, each with clusters and targets of its own, and its interval.

    Student's t with k - 1 degrees of freedom, again on the logarithm of the odds. Of a hierarchy the top alone counts
    (Davison and Hinkley 1997, section 3.8; Field and Welsh 2007): the seeds' values differ by what learners and
    targets add, too, which would count twice if these were resampled in them. `units` are those of all seeds, see
    `of_resampled`. Of one seed it is the interval that it has.
    """
    if len(estimates) == 1:
        return estimates[0]
    values = np.array([one.value for one in estimates])
    mean = float(values.mean())
    spread, slope = float(values.std(ddof=1)), mean * (1 - mean)
    if spread == 0 or slope <= 0:
        return _clopper_pearson(mean, units)
    return _on_the_odds(mean, spread / math.sqrt(len(values)) / slope, len(values))


def _on_the_odds(value: float, error: float, clusters: int) -> Estimate:
    """Return the estimate of a rate in (0, 1) whose log odds have a standard `error` known from n > 1 `clusters`."""
    reach = -float(stdtrit(clusters - 1, _ERROR)) * error
    odds = math.log(value / (1 - value))
    low, high = (float(expit(odds + side * reach)) for side in (-1, 1))
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def _clopper_pearson(value: float, units: int) -> Estimate:
    """Return the estimate of a rate over so many independent units."""
    value = min(1.0, max(0.0, value))
    right = value * units
    low = float(betaincinv(right, units - right + 1, _ERROR)) if right > 0 else 0.0
    high = float(betaincinv(right + 1, units - right, 1 - _ERROR)) if right < units else 1.0
    return Estimate(value=value, low=min(low, value), high=max(high, value))
