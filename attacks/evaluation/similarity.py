"""How similar reconstructed examples are to the true ones, pair by pair.

The order of a learner's examples is unknown to an attack, so its reconstructions are paired with its true examples
by the assignment with the greatest total similarity (`scipy.optimize.linear_sum_assignment`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from metaleak.attacks.evaluation.intervals import expanded_interval
from metaleak.attacks.evaluation.lpips import Lpips
from metaleak.attacks.evaluation.measures import Measure
from metaleak.attacks.evaluation.rouge import rouge_l, rouge_n
from metaleak.attacks.evaluation.ssim import ssim

Floats = NDArray[np.float64]

LARGEST_PSNR = 200.0
"""The PSNR in decibels at which values are capped; an image without error would have an infinite one."""


@dataclass(frozen=True, eq=False)
class Pairing:
    """Which reconstruction each true example is paired with, and how similar the two are.

    `partner (L, m)` int64 is the index of the reconstruction, -1 if there is none left; `alike (L, m)` is the
    similarity, higher for more similar.
    """

    partner: NDArray[np.int64]
    alike: Floats


def similarity(
    modality: str,
    made: ArrayLike,
    held: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    padding: int | None = None,
    lpips: Lpips | None = None,
) -> tuple[Pairing, tuple[Measure, ...]]:
    """Return the pairing of reconstructions `made (L, n, ...)` with examples `held (L, m, ...)`, and its measures.

    L is the number of learners. Examples of the modality `image` are `(C, H, W)` in [0, 1]; pairs minimize the sum of
    squared errors. The headline is the mean peak signal-to-noise ratio in decibels, for a peak of 1. SSIM and LPIPS
    (given its weights, for 1 or 3 channels) are of reconstructions clipped to [0, 1]. A true image without a partner
    is compared with medium gray.

    Examples of the modality `tokens` are sequences `(T,)`. The headline is the mean fraction of positions at which
    both have the same token; a sequence without a partner counts 0. With a `padding` token, positions at which both
    have it are ignored, and ROUGE-1, ROUGE-2 and ROUGE-L are measured, too; other special tokens count like words.

    Intervals are 95 % (see `intervals.expanded_interval`), over learners, or over the examples of a single learner.
    Raises `ValueError` for another modality, and for shapes or values that do not fit.

    Example:
        >>> _, measures = similarity("tokens", [[[5, 6, 7, 8]]], [[[5, 6, 7, 9]]])
        >>> [(one.name, one.value) for one in measures]
        [('tokens recovered', 0.75), ('sequences recovered', 0.0)]
    """

    def measure(name: str, values: Floats, headline: bool = False, higher_leaks: bool = True) -> Measure:
        low, high = _interval(values, resamples, seed)
        value = float(values.mean())
        return Measure(name=name, value=value, low=low, high=high, headline=headline, higher_leaks=higher_leaks)

    if modality == "image":
        if np.ndim(held) != 5:
            raise ValueError(
                f"held: images must be (learners, images, channels, height, width), got {np.shape(held)}"
            )
        partner, squared = _paired(made, held, _squared_errors, _squared_errors_of_gray)
        with np.errstate(divide="ignore"):
            decibels = np.minimum(LARGEST_PSNR, -10 * np.log10(squared))
        true = np.asarray(held, np.float64)
        rebuilt = _images_beside(np.asarray(made, np.float64), partner)
        found = [
            measure("PSNR", decibels, headline=True),
            measure("mean squared error", squared, higher_leaks=False),
            measure("SSIM", ssim(rebuilt, true)),
        ]
        if lpips is not None and true.shape[2] in (1, 3):
            distances = lpips(rebuilt.reshape(-1, *true.shape[2:]), true.reshape(-1, *true.shape[2:]))
            found.append(measure("LPIPS", distances.reshape(partner.shape), higher_leaks=False))
        return Pairing(partner, decibels), tuple(found)
    if modality == "tokens":

        def different_parts(rebuilt: Floats, true: Floats) -> Floats:
            return _parts_different(rebuilt, true, padding)

        partner, different = _paired(made, held, different_parts, lambda true: np.ones(len(true)))
        equal = 1 - different
        rouge = () if padding is None else _rouge(np.asarray(made), np.asarray(held), partner, padding)
        return Pairing(partner, equal), (
            measure("tokens recovered", equal, headline=True),
            measure("sequences recovered", np.asarray(equal == 1, np.float64)),
            *(measure(name, values) for name, values in rouge),
        )
    raise ValueError(f"modality: must be image or tokens, got {modality!r}")


def _squared_errors(rebuilt: Floats, true: Floats) -> Floats:
    return np.asarray(((rebuilt[:, None] - true[None]) ** 2).mean(axis=-1))


def _squared_errors_of_gray(true: Floats) -> Floats:
    return np.asarray(((true - 0.5) ** 2).mean(axis=-1))


def _images_beside(made: Floats, partner: NDArray[np.int64]) -> Floats:
    """Return the image that each true image is compared with, clipped to [0, 1]: its partner, or gray."""
    found = made[np.arange(len(made))[:, None], partner.clip(min=0)]
    there = (partner >= 0)[..., None, None, None]
    return np.asarray(np.where(there, found, 0.5)).clip(0, 1)


def _parts_different(rebuilt: Floats, true: Floats, padding: int | None) -> Floats:
    different = rebuilt[:, None] != true[None]
    if padding is None:
        return np.asarray(different.mean(axis=-1), np.float64)
    counted = (rebuilt != padding)[:, None] | (true != padding)[None]
    return np.asarray(different.sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1), np.float64)


def _rouge(
    made: NDArray[np.int64], held: NDArray[np.int64], partner: NDArray[np.int64], padding: int
) -> tuple[tuple[str, Floats], ...]:
    """Return the ROUGE variants by name: values `(L, m)` of true sentences and their partners, 0 without one."""
    values = np.zeros((3, *partner.shape))
    for learner, place in np.argwhere(partner >= 0):
        rebuilt, true = (
            [token for token in row.tolist() if token != padding]
            for row in (made[learner, partner[learner, place]], held[learner, place])
        )
        values[:, learner, place] = rouge_n(rebuilt, true, 1), rouge_n(rebuilt, true, 2), rouge_l(rebuilt, true)
    return tuple(zip(("ROUGE-1", "ROUGE-2", "ROUGE-L"), values, strict=True))


def _paired(
    made: ArrayLike,
    held: ArrayLike,
    cost: Callable[[Floats, Floats], Floats],
    left: Callable[[Floats], Floats],
) -> tuple[NDArray[np.int64], Floats]:
    """Return each true example's partner and cost, by the assignment with the least total cost for each learner.

    `cost` maps reconstructions `(n, d)` and true examples `(m, d)` to `(n, m)`; `left` maps true examples to `(m,)`,
    their costs without a partner.
    """
    rebuilt, true = np.asarray(made, np.float64), np.asarray(held, np.float64)
    if (
        rebuilt.ndim < 3
        or rebuilt.ndim != true.ndim
        or len(rebuilt) != len(true)
        or rebuilt.shape[2:] != true.shape[2:]
    ):
        raise ValueError(
            f"made: reconstructions {rebuilt.shape} do not fit the true examples {true.shape}: both must be "
            "(learners, any number, ...), with the same number of learners and the same shape of an example"
        )
    if not np.isfinite(rebuilt).all():
        raise ValueError("made: reconstructions must be finite")
    partner = np.full(true.shape[:2], -1, np.int64)
    costs = np.empty(true.shape[:2])
    for learner, (one, other) in enumerate(zip(rebuilt, true, strict=True)):
        one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
        table = cost(one, other)
        rows, columns = linear_sum_assignment(table)
        costs[learner] = left(other)
        costs[learner, columns] = table[rows, columns]
        partner[learner, columns] = rows
    return partner, costs


def _interval(values: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """Return the interval of the mean of `values (L, m)`."""
    units = values.mean(axis=1) if len(values) > 1 else values[0]
    random = np.random.default_rng(seed)
    means = [units[random.integers(0, len(units), len(units))].mean() for _ in range(resamples)]
    return expanded_interval(means, len(units))
