"""How much of a gradient's spectrum is noise: the Marchenko-Pastur floor under the singular values."""

import math
from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-6
"""An edge below this part of the largest singular value is that of float32 rounding, which is not independent."""

_SLACK = 1.01
"""A singular value counts as signal from this multiple of the edge on; the largest of pure noise stay within it."""


@dataclass(frozen=True)
class RowSpace:
    """What stands above the noise of one matrix `(H, P)`: its leading singular pairs.

    `basis (k, P)` has orthonormal rows, by the descending `values (k,)`, k at least 1; float64. `deviation` is that
    of the noise on every entry.
    """

    basis: Tensor
    values: Tensor
    deviation: float


@dataclass(frozen=True)
class Floor:
    """The noise under one matrix: the standard `deviation` of an entry, and how many singular values stand above."""

    deviation: float
    rank: int


def marchenko_pastur_edge(rows: int, columns: int, deviation: float = 1.0) -> float:
    """Return the largest singular value of a `rows x columns` matrix of independent noise, for large matrices.

    It is `deviation (sqrt(rows) + sqrt(columns))` (Marchenko and Pastur 1967), for entries with four moments.
    """
    return deviation * (math.sqrt(rows) + math.sqrt(columns))


def noise_floor(values: Tensor, rows: int, columns: int, deviation: float | None = None) -> Floor:
    """Return the noise of a `rows x columns` matrix that is of low rank but for independent noise on every entry.

    `values (min(rows, columns),)` are its singular values, descending. The deviation is that of all that lies below
    the signal, the signal whatever lies above the edge of such noise: both are found together, from the least signal
    on. A known `deviation` is taken as it is. A matrix without noise has that of float32 rounding. The rank is at
    most one less than the values: where the signal fills them all, the smallest is taken for noise.
    """
    energy = values.double().square()
    # Sums from the small end: what is left below a rank must not drown in the large values.
    tails = energy.flip(0).cumsum(0).flip(0).tolist()
    least = _ROUNDING * float(values[0]) / marchenko_pastur_edge(rows, columns) if len(values) else 0.0
    rising = (-values.double()).tolist()
    rank, found = 0, 0.0
    while rank < len(values):
        left = (rows - rank) * (columns - rank)
        found = max((tails[rank] / left) ** 0.5, least) if deviation is None else max(deviation, least)
        edge = _SLACK * marchenko_pastur_edge(rows - rank, columns - rank, found)
        above = bisect_left(rising, -edge)
        if above <= rank or rank == len(values) - 1:
            break
        # One at a time: a step too far would take noise for signal and never find back.
        rank += 1
    return Floor(found, rank)


def row_space_above_noise(matrix: Tensor, deviation: float | None = None) -> RowSpace:
    """Return the leading right singular vectors and values of `matrix (H, P)`; see `noise_floor` for `deviation`.

    Computed from the smaller Gram matrix, three times faster than a decomposition: its squared values are right to a
    part in 1e15 of the largest, which is enough down to the rounding of float32 entries.
    """
    wide = matrix.double()
    height, width = wide.shape
    energy, vectors = torch.linalg.eigh(wide @ wide.mT if height <= width else wide.mT @ wide)
    values = energy.flip(0).clamp(min=0).sqrt()
    floor = noise_floor(values, height, width, deviation)
    count = max(1, floor.rank)
    leading = vectors.flip(1)[:, :count]
    if height <= width:
        # The first columns of Q span what the first vectors span: only rounding is turned away.
        leading, _ = torch.linalg.qr(wide.mT @ leading / values[:count].clamp(min=1e-300))
    return RowSpace(leading.mT.contiguous(), values[:count], floor.deviation)
