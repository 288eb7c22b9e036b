"""95 % intervals of a rate, from resampled clusters and from several seeds, that cover with few of either."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import expit, ndtr, stdtrit

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
    normal law's tails are not those of Student's t: so the quantiles at Phi(-t sqrt(n / (n - 1))) and above are taken
    (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.2). With one cluster nothing is
    expanded.
    """
    error = _ERROR
    if clusters > 1:
        error = float(ndtr(stdtrit(clusters - 1, _ERROR) * math.sqrt(clusters / (clusters - 1))))
    low, high = np.quantile(np.asarray(resampled, np.float64), [error, 1 - error])
    return float(low), float(high)


def of_resampled(value: float, resampled: ArrayLike, clusters: int, units: int, steps: int) -> Estimate:
    """Return a rate whose `resampled (B,)` values are of n `clusters`, with its interval.

    Student's t with n - 1 degrees of freedom on the logarithm of the odds, with the bootstrap's deviation there and
    the divisor n - 1: near 1, where percentiles cover far too little, it is skewed as the rate is. A resample cannot
    be nearer to 0 or 1 than half of one of the `steps` in which the rate can change.

    Of a rate without a single error no resample has one. Then the interval is that of Clopper and Pearson for
    independent `units` (targets of the rarer kind), which tells nothing of how much clusters differ: none does.
    """
    drawn = np.clip(np.asarray(resampled, np.float64), 1 / (2 * steps), 1 - 1 / (2 * steps))
    error = float(_log_odds(drawn).std()) * math.sqrt(clusters / (clusters - 1)) if clusters > 1 else 0.0
    return _on_the_odds(value, error, clusters, units)


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
    slope = mean * (1 - mean)
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) / slope if slope else 0.0
    return _on_the_odds(mean, error, len(values), units)


def _log_odds(rate: Floats) -> Floats:
    return np.asarray(np.log(rate) - np.log1p(-rate))


def _on_the_odds(value: float, error: float, clusters: int, units: int) -> Estimate:
    """Return the estimate of a rate whose log odds have a standard `error` known from `clusters`."""
    value = min(1.0, max(0.0, value))
    if value in (0.0, 1.0):
        reach = 1 - _ERROR ** (1 / units)
        return Estimate(value=value, low=max(0.0, value - reach), high=min(1.0, value + reach))
    reach = -float(stdtrit(max(1, clusters - 1), _ERROR)) * error
    odds = math.log(value / (1 - value))
    low, high = (float(expit(odds + side * reach)) for side in (-1, 1))
    return Estimate(value=value, low=min(low, value), high=max(high, value))
