"""Sparse vectors in the column space of a gradient: candidates for the coefficients of single examples."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_ALIVE = 1e-9
"""A unit whose gradient, relative to the largest, is below this counts as having none."""

_ABOVE = 5.0
"""The factor by which a singular value must exceed those of rounding to count."""

_ZERO = 25.0
"""The largest coefficient that counts as zero, in standard deviations of the rounding, for a precise column."""

_MOST = 120_000
"""The largest number of candidates times units kept from one draw of subsets; the sparsest are kept."""

_FIRST = 30.0
"""The factor on `zero_threshold` for a column that is determined by few units only."""


@dataclass(frozen=True)
class GradientRows:
    """The rows of one gradient, in an orthonormal basis of the space that they span.

    `basis (b, n + 1)` is orthonormal, where b is the number of examples. `live (m,)` says which units have a
    gradient, and `rows (l, b)` are the coordinates of their rows, scaled to length 1. `noise` is the standard
    deviation of an entry's component outside the space, relative to its row's length.
    """

    basis: Tensor
    rows: Tensor
    live: Tensor
    noise: float

    @classmethod
    def of(cls, matrix: Tensor, most: int) -> Self | None:
        """Return the row space of `matrix (m, n + 1)`, of rank at most `most`; `None` if it is zero or not finite.

        The rank is the number of singular values that exceed those from `most` on, which are rounding or noise.
        """
        lengths = matrix.norm(dim=1)
        live = lengths > _ALIVE * lengths.max()
        if not bool(torch.isfinite(matrix).all()) or not bool(live.any()) or float(lengths.max()) == 0:
            return None
        seen = matrix[live]
        # Rows scaled to the same length, since rounding errors are proportional to it.
        scaled = seen / lengths[live][:, None]
        _, values, right = torch.linalg.svd(seen, full_matrices=False)
        floor = float(values[most]) if len(values) > most else 0.0
        rank = int((values[:most] > max(_ABOVE * floor, 1e-12 * float(values[0]))).sum())
        basis = right[:rank]
        rows = scaled @ basis.mT
        outside = (scaled - rows @ basis).square().sum() / max(1, len(scaled) * (scaled.shape[1] - rank))
        return cls(basis, rows, live, max(float(outside.sqrt()), 1e-15))

    @property
    def rank(self) -> int:
        """The rank b."""
        return len(self.basis)

    @property
    def zero_threshold(self) -> float:
        """The threshold below which a unit's coefficient, relative to its row's length, counts as zero."""
        return _ZERO * self.noise

    @property
    def rank_threshold(self) -> float:
        """The smallest singular value of columns that count as independent."""
        return max(1e-7, 100 * self.noise)


@dataclass(frozen=True)
class Candidates:
    """Candidate columns of the mixing matrix, of length 1, and the live units at which they are zero.

    `columns (k, b)` and `off (k, l)`, booleans, for b examples and l live units.
    """

    columns: Tensor
    off: Tensor

    @property
    def zeros(self) -> Tensor:
        """The number of live units at which each column is zero, `(k,)`."""
        return self.off.sum(dim=1)

    def at(self, places: Tensor) -> Self:
        """Return the candidates at these `places`."""
        return type(self)(self.columns[places], self.off[places])


def from_random_subsets(row_space: GradientRows, samples: int, generator: torch.Generator) -> Candidates:
    """Return the sparse columns that `samples` random subsets of b - 1 live units yield.

    The direction orthogonal to the rows of such a subset is a column of the mixing matrix if all units of the subset
    are off for one example. The column is then zero at all other units that are off for this example, is recomputed
    from all of them, and is kept if they are one more than needed to determine it. With rank 1 there is one column,
    which is zero at no live unit.
    """
    rows, size = row_space.rows, row_space.rank
    if size == 1:
        return Candidates(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, len(rows), dtype=torch.bool))
    subsets = torch.randint(len(rows), (samples, size - 1), generator=generator)
    free = torch.randn(samples, 1, size, generator=generator, dtype=torch.float64)
    unit = torch.zeros(samples, size, 1, dtype=torch.float64)
    unit[:, -1] = 1.0
    solved, _ = torch.linalg.solve_ex(torch.cat([rows[subsets], free], dim=1), unit)
    columns = solved[..., 0]
    columns = columns[torch.isfinite(columns).all(dim=1)]
    columns = columns / columns.norm(dim=1, keepdim=True)
    off = (columns @ rows.mT).abs() < _FIRST * row_space.zero_threshold
    enough = off.sum(dim=1) >= size + 1
    off = off[enough]
    off = off[first_of_each(off)]
    off = off[torch.argsort(off.sum(dim=1), descending=True)][: _MOST // len(rows)]
    return from_units(row_space, off)


def from_units(row_space: GradientRows, off: Tensor) -> Candidates:
    """Return the distinct columns that are zero at the units in each row of `off (k, l)`.

    Rows are dropped whose units do not determine a column, or whose column is zero at fewer than b units, one more
    than needed to determine it.
    """
    columns = torch.zeros(len(off), row_space.rank, dtype=torch.float64)
    for _ in range(3):
        columns, determined = _from_zeros(row_space, off)
        off = (columns @ row_space.rows.mT).abs() < row_space.zero_threshold
        kept = determined & (off.sum(dim=1) >= row_space.rank)
        columns, off = columns[kept], off[kept]
    return Candidates(columns, off).at(first_of_each(off))


def _from_zeros(row_space: GradientRows, off: Tensor) -> tuple[Tensor, Tensor]:
    """Return directions `(k, b)` orthogonal to the rows of the units `off (k, l)`, and which are unique `(k,)`."""
    squares = torch.einsum("kl,la,lb->kab", off.double(), row_space.rows, row_space.rows)
    values, vectors = torch.linalg.eigh(squares)
    count = off.sum(dim=1).clamp(min=1)
    second = (values[:, min(1, row_space.rank - 1)].clamp(min=0) / count).sqrt()
    return vectors[..., 0], second > 4 * row_space.noise if row_space.rank > 1 else count > 0


def first_of_each(off: Tensor) -> Tensor:
    """Return the indices of the first occurrence of every distinct row, in order."""
    if not len(off):
        return torch.zeros(0, dtype=torch.int64)
    keys = torch.randint(2**62, (off.shape[1],), generator=torch.Generator().manual_seed(0))
    hashed = (off.to(torch.int64) * keys).sum(dim=1)
    order = torch.argsort(hashed, stable=True)
    new = torch.ones(len(order), dtype=torch.bool)
    new[1:] = hashed[order][1:] != hashed[order][:-1]
    return order[new].sort().values
