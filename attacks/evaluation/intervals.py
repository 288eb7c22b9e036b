"""95 % intervals of a rate, from resampled clusters and over seeds, with correct coverage even for few of them."""

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
"""The error probability on either side."""


class Estimate(BaseModel):
    """A rate in [0, 1] with its 95 % interval `[low, high]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Rate
    low: Rate
    high: Rate


def expanded_interval(resampled: ArrayLike, clusters: int) -> tuple[float, float]:
    """Return the expanded percentile interval of a statistic from `resampled (B,)` values over n `clusters`.

    Percentiles of the bootstrap are too narrow for few clusters: its variance has the divisor n in place of n - 1,
    and its tails are lighter than those of Student's t. So the quantiles at Phi(-t sqrt(n / (n - 1))) and 1 minus
    that are used (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.2). With one cluster
    nothing is expanded.
    """
    error = _ERROR
    if clusters > 1:
        error = float(ndtr(stdtrit(clusters - 1, _ERROR) * math.sqrt(clusters / (clusters - 1))))
    low, high = np.quantile(np.asarray(resampled, np.float64), [error, 1 - error])
    return float(low), float(high)


def of_resampled(value: float, resampled: ArrayLike, clusters: int, units: int) -> Estimate:
    """Return a rate with its interval from `resampled (B,)` values over n `clusters`.

    The interval is Student's t with n - 1 degrees of freedom on the log odds, so that it is skewed as the rate's
    distribution is near 0 and 1, where percentile intervals cover far too little. The standard error, with the
    divisor n - 1, is the larger of two: the standard deviation of the resamples' log odds, clipped to half a target's
    distance from 0 and 1, and that of the resamples themselves, transformed by the delta method.

    If the resamples do not differ, as for a rate of exactly 0 or 1, or there is only one cluster, it is the
    Clopper-Pearson interval for `units` (the number of targets of the rarer kind). That assumes independent targets:
    the variation between clusters cannot be estimated then, and where there is some the interval is too narrow.
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

    `by_first (B,)`, `by_second (B,)` and `by_unit (B,)` are its values when clusters of the one kind, clusters of the
    other kind, or single targets are resampled. The variance is that of the first plus that of the second minus that
    of single targets (Cameron, Gelbach and Miller 2011, equation 2.10), and at least the largest of the three.
    Otherwise as `of_resampled`, with the degrees of freedom of the kind with fewer clusters.
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
    """Return the mean of one rate over k seeds, each with its own clusters and targets, with its interval.

    The interval is Student's t with k - 1 degrees of freedom on the log odds. Only the top level of the hierarchy of
    seeds, learners and targets is used (Davison and Hinkley 1997, section 3.8; Field and Welsh 2007): the variation
    between seeds already includes that of learners and targets, which resampling within seeds would count twice.
    `units` as in `of_resampled`, summed over seeds. For one seed its own interval is returned.
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
    """Return the estimate of a rate in (0, 1) whose log odds have this standard `error`, from n > 1 `clusters`."""
    reach = -float(stdtrit(clusters - 1, _ERROR)) * error
    odds = math.log(value / (1 - value))
    low, high = (float(expit(odds + side * reach)) for side in (-1, 1))
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def _clopper_pearson(value: float, units: int) -> Estimate:
    """Return the estimate of a rate over this many independent `units`."""
    value = min(1.0, max(0.0, value))
    right = value * units
    low = float(betaincinv(right, units - right + 1, _ERROR)) if right > 0 else 0.0
    high = float(betaincinv(right + 1, units - right, 1 - _ERROR)) if right < units else 1.0
    return Estimate(value=value, low=min(low, value), high=max(high, value))
