"""Sparse vectors in the column space of a gradient: what may be the coefficients of single examples."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_ALIVE = 1e-9
"""A unit whose gradient is below this part of the largest has none."""

_ABOVE = 5.0
"""How many times a singular value is larger than those of rounding to count."""

_ZERO = 25.0
"""How many deviations of the rounding a zero is from zero at most, for a column that is known precisely."""

_MOST = 120_000
"""Candidates times units that are followed up at most of one draw of subsets, the sparsest."""

_FIRST = 30.0
"""The same, times this, for a column that is known from few units only."""


@dataclass(frozen=True)
class Spectrum:
    """The rows of one gradient in the space that they span.

    `basis (b, n + 1)` is orthonormal; `rows (l, b)` are the coordinates of the live units' rows in it, of length 1;
    `live (m,)` says which units those are. `noise` is the deviation of what lies outside the space, an entry, as part
    of its row's length.
    """

    basis: Tensor
    rows: Tensor
    live: Tensor
    noise: float

    @classmethod
    def of(cls, matrix: Tensor, most: int) -> Self | None:
        """Return the spectrum of `matrix (m, n + 1)`, of rank `most` at most; `None` for a matrix of zeros.

        The rank is the number of singular values that stand above those from `most` on, which are rounding or noise.
        """
        lengths = matrix.norm(dim=1)
        live = lengths > _ALIVE * lengths.max()
        if not bool(torch.isfinite(matrix).all()) or not bool(live.any()) or float(lengths.max()) == 0:
            return None
        seen = matrix[live]
        # Rows of one length: a unit's rounding goes with its length.
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
        """Return b."""
        return len(self.basis)

    @property
    def zero(self) -> float:
        """Return below which size a unit's coefficient, as part of its row's length, counts as zero."""
        return _ZERO * self.noise

    @property
    def distinct(self) -> float:
        """Return the smallest singular value with which columns count as independent."""
        return max(1e-7, 100 * self.noise)


@dataclass(frozen=True)
class Candidates:
    """Columns of the mixing matrix: `columns (k, b)` of length 1, and which live units they leave `off (k, l)`."""

    columns: Tensor
    off: Tensor

    @property
    def zeros(self) -> Tensor:
        """Return how many live units each leaves off `(k,)`."""
        return self.off.sum(dim=1)

    def at(self, places: Tensor) -> Self:
        """Return those at these places."""
        return type(self)(self.columns[places], self.off[places])


def separated(spectrum: Spectrum, samples: int, generator: torch.Generator) -> Candidates:
    """Return the sparse columns that `samples` random subsets of b - 1 live units show.

    The one direction that is orthogonal to the rows of such a subset is a column of the mixing matrix if the units of
    the subset are all off for one example. It is then zero for all other units that are off for it, too, is computed
    anew from all of them, and kept if they determine it with one unit to spare. Of rank 1 there is one column, which
    leaves no live unit off.
    """
    rows, size = spectrum.rows, spectrum.rank
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
    off = (columns @ rows.mT).abs() < _FIRST * spectrum.zero
    enough = off.sum(dim=1) >= size + 1
    off = off[enough]
    off = off[first_of_each(off)]
    off = off[torch.argsort(off.sum(dim=1), descending=True)][: _MOST // len(rows)]
    return from_units(spectrum, off)


def from_units(spectrum: Spectrum, off: Tensor) -> Candidates:
    """Return the columns that are zero for these units, one a row of `off (k, l)`, each once.

    A row is left out whose units do not determine a column that is zero for them and, with one to spare, for as many
    units as there are examples.
    """
    columns = torch.zeros(len(off), spectrum.rank, dtype=torch.float64)
    for _ in range(3):
        columns, determined = _from_zeros(spectrum, off)
        off = (columns @ spectrum.rows.mT).abs() < spectrum.zero
        kept = determined & (off.sum(dim=1) >= spectrum.rank)
        columns, off = columns[kept], off[kept]
    return Candidates(columns, off).at(first_of_each(off))


def _from_zeros(spectrum: Spectrum, off: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions `(k, b)` that the rows of the units `off (k, l)` leave free, and which are determined."""
    squares = torch.einsum("kl,la,lb->kab", off.double(), spectrum.rows, spectrum.rows)
    values, vectors = torch.linalg.eigh(squares)
    count = off.sum(dim=1).clamp(min=1)
    second = (values[:, min(1, spectrum.rank - 1)].clamp(min=0) / count).sqrt()
    return vectors[..., 0], second > 4 * spectrum.noise if spectrum.rank > 1 else count > 0


def first_of_each(off: Tensor) -> Tensor:
    """Return the places of the first of all equal rows, in order."""
    if not len(off):
        return torch.zeros(0, dtype=torch.int64)
    keys = torch.randint(2**62, (off.shape[1],), generator=torch.Generator().manual_seed(0))
    hashed = (off.to(torch.int64) * keys).sum(dim=1)
    order = torch.argsort(hashed, stable=True)
    new = torch.ones(len(order), dtype=torch.bool)
    new[1:] = hashed[order][1:] != hashed[order][:-1]
    return order[new].sort().values
