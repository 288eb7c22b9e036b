"""How much reconstructed examples resemble the true ones, pair by pair.

An attack does not know in which order a learner holds its examples, so the reconstructions of each learner are paired
with its true examples such that the pairs together are most alike (`scipy.optimize.linear_sum_assignment`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from metaleak.attacks.evaluation.measures import Measure

Floats = NDArray[np.float64]

LARGEST_PSNR = 200.0
"""Decibels that count for an image without error, whose peak signal-to-noise ratio is infinite."""


@dataclass(frozen=True, eq=False)
class Pairing:
    """Which reconstruction each of a learner's true examples is paired with, and how alike they are.

    `partner (L, m)` int64 is the place of the reconstruction, -1 where fewer were made than are held; `alike (L, m)`
    the higher the better.
    """

    partner: NDArray[np.int64]
    alike: Floats


def paired_images(made: ArrayLike, held: ArrayLike) -> Pairing:
    """Return the pairing of images `made (L, n, ...)` with those `held (L, m, ...)`, in [0, 1], alike by PSNR in dB.

    Pairs are chosen for the least sum of squared errors. The peak is 1. An image that nothing is paired with counts
    as one of medium gray, 0.5 everywhere. Raises `ValueError` for shapes that do not fit.
    """

    def errors(ours: Floats, true: Floats) -> Floats:
        return np.asarray(((ours[:, None] - true[None]) ** 2).mean(axis=-1))

    def left(true: Floats) -> Floats:
        return np.asarray(((true - 0.5) ** 2).mean(axis=-1))

    pairing = _paired(made, held, errors, left)
    with np.errstate(divide="ignore"):
        return Pairing(pairing.partner, np.minimum(LARGEST_PSNR, -10 * np.log10(pairing.alike)))


def paired_tokens(made: ArrayLike, held: ArrayLike) -> Pairing:
    """Return the pairing of sequences `made (L, n, T)` with `held (L, m, T)`, alike by the part of equal tokens.

    A token is equal when it stands at the same place. A sequence that nothing is paired with has none. Raises
    `ValueError` for shapes that do not fit.
    """

    def different(ours: Floats, true: Floats) -> Floats:
        return np.asarray((ours[:, None] != true[None]).mean(axis=-1), np.float64)

    pairing = _paired(made, held, different, lambda true: np.ones(len(true)))
    return Pairing(pairing.partner, 1 - pairing.alike)


def image_measures(pairing: Pairing, *, resamples: int = 1000, seed: int = 0) -> tuple[Measure, ...]:
    """Return the mean peak signal-to-noise ratio of the pairs in dB, the headline, and the mean squared error.

    Intervals resample learners, or the examples of a single one (percentile bootstrap).
    """
    squared = 10 ** (-pairing.alike / 10)
    return (
        _measure("PSNR", pairing.alike, resamples, seed, headline=True),
        _measure("mean squared error", squared, resamples, seed, higher_leaks=False),
    )


def token_measures(pairing: Pairing, *, resamples: int = 1000, seed: int = 0) -> tuple[Measure, ...]:
    """Return the part of tokens that were recovered, the headline, and of sequences recovered as a whole.

    Intervals are those of `image_measures`.
    """
    return (
        _measure("tokens recovered", pairing.alike, resamples, seed, headline=True),
        _measure("sequences recovered", (pairing.alike == 1).astype(np.float64), resamples, seed),
    )


def _paired(
    made: ArrayLike,
    held: ArrayLike,
    cost: Callable[[Floats, Floats], Floats],
    left: Callable[[Floats], Floats],
) -> Pairing:
    """Return for each true example its partner and the cost of the two, with least costs in sum for each learner."""
    ours, true = np.asarray(made, np.float64), np.asarray(held, np.float64)
    if ours.ndim < 3 or ours.ndim != true.ndim or len(ours) != len(true) or ours.shape[2:] != true.shape[2:]:
        raise ValueError(
            f"reconstructions {ours.shape} do not fit the true examples {true.shape}: "
            "must be (learners, any number, ...) of the same learners and the same shape of an example"
        )
    if not np.isfinite(ours).all():
        raise ValueError("reconstructions must be finite")
    partner = np.full(true.shape[:2], -1, np.int64)
    costs = np.empty(true.shape[:2])
    for learner, (one, other) in enumerate(zip(ours, true, strict=True)):
        one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
        table = cost(one, other)
        rows, columns = linear_sum_assignment(table)
        costs[learner] = left(other)
        costs[learner, columns] = table[rows, columns]
        partner[learner, columns] = rows
    return Pairing(partner, costs)


def _measure(
    name: str, values: Floats, resamples: int, seed: int, *, headline: bool = False, higher_leaks: bool = True
) -> Measure:
    units = values.mean(axis=1) if len(values) > 1 else values[0]
    random = np.random.default_rng(seed)
    means = [units[random.integers(0, len(units), len(units))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    value = float(values.mean())
    return Measure(
        name=name,
        value=value,
        low=min(value, float(low)),
        high=max(value, float(high)),
        headline=headline,
        higher_leaks=higher_leaks,
    )
