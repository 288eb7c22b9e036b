"""A gradient's noise level and its row space above the noise, by the Marchenko-Pastur edge."""

import math
from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-6
"""The lowest edge, relative to the largest singular value: that of float32 rounding, which is not independent."""

_SLACK = 1.01
"""Singular values above this multiple of the edge count as signal; those of pure noise are below it."""


@dataclass(frozen=True)
class RowSpace:
    """The leading singular pairs of one matrix `(H, P)`, those above its noise.

    `basis (k, P)` has orthonormal rows, ordered by the descending `values (k,)`, k at least 1; float64. `deviation`
    is the standard deviation of the noise on every entry.
    """

    basis: Tensor
    values: Tensor
    deviation: float


@dataclass(frozen=True)
class Floor:
    """The noise in one matrix: the standard `deviation` of an entry, and the number of singular values above it."""

    deviation: float
    rank: int


def marchenko_pastur_edge(rows: int, columns: int, deviation: float = 1.0) -> float:
    """Return the largest singular value of a `rows x columns` matrix of independent noise, for large matrices.

    It is `deviation (sqrt(rows) + sqrt(columns))` (Marchenko and Pastur 1967), for entries with finite fourth
    moments.
    """
    return deviation * (math.sqrt(rows) + math.sqrt(columns))


def noise_floor(values: Tensor, rows: int, columns: int, deviation: float | None = None) -> Floor:
    """Return the noise of a `rows x columns` matrix of low rank with independent noise on every entry.

    `values (min(rows, columns),)` are its singular values, descending. The signal consists of the values above the
    edge of the noise, and the noise level is that of the remaining values; both are found together, starting with no
    signal. A known `deviation` is used as given. Without noise, the level is that of float32 rounding. The rank is at
    most one less than the number of values: the smallest always counts as noise.
    """
    energy = values.double().square()
    # Summed from the small end, so that small values are not lost next to large ones.
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
        # One at a time: a larger step could take noise for signal, which would never be corrected.
        rank += 1
    return Floor(found, rank)


def row_space_above_noise(matrix: Tensor, deviation: float | None = None) -> RowSpace:
    """Return the leading right singular vectors and values of `matrix (H, P)`; see `noise_floor` for `deviation`.

    Computed from the smaller Gram matrix, three times faster than a singular value decomposition. Squared values have
    an error of 1e-15 relative to the largest, which suffices down to the rounding of float32 entries.
    """
    wide = matrix.double()
    height, width = wide.shape
    energy, vectors = torch.linalg.eigh(wide @ wide.mT if height <= width else wide.mT @ wide)
    values = energy.flip(0).clamp(min=0).sqrt()
    floor = noise_floor(values, height, width, deviation)
    count = max(1, floor.rank)
    leading = vectors.flip(1)[:, :count]
    if height <= width:
        # The first columns of Q span the same space as the first vectors; only rounding errors are removed.
        leading, _ = torch.linalg.qr(wide.mT @ leading / values[:count].clamp(min=1e-300))
    return RowSpace(leading.mT.contiguous(), values[:count], floor.deviation)


def part_outside(images: Tensor, basis: Tensor) -> Tensor:
    """Return the fraction of each squared norm of `images (T, P)` outside the span of orthonormal `basis (n, P)`."""
    rest = images - images @ basis.mT @ basis
    return rest.square().sum(dim=1) / images.square().sum(dim=1).clamp(min=1e-300)
