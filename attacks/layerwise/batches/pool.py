"""Candidates ranked by how likely they are the coefficients of single examples."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metaleak.attacks.layerwise.batches.candidates import Candidates, GradientRows, first_of_each

_KEPT = 1000
"""The largest number of candidates kept."""

_MISFIT = 0.25
"""The weight of `misfit` in the ranking, relative to that of the share of units that are off."""

_FITS = 0.07
"""The bonus in the ranking for a misfit of 0."""


@dataclass(frozen=True)
class Pool:
    """Candidates, the most likely coefficients of single examples first, with their `misfit (k,)`; see `_misfit`."""

    candidates: Candidates
    misfit: Tensor

    @classmethod
    def empty(cls, row_space: GradientRows) -> Self:
        """Return a pool without candidates."""
        columns = torch.zeros(0, row_space.rank, dtype=torch.float64)
        off = torch.zeros(0, len(row_space.rows), dtype=torch.bool)
        return cls(Candidates(columns, off), columns[:, 0])

    @classmethod
    def of(cls, row_space: GradientRows, candidates: Candidates, sent: Tensor) -> Self:
        """Return the pool of these candidates, given the parameters that were `sent (l, n + 1)`."""
        return cls(candidates, _misfit(row_space, candidates, sent))._ordered()

    def joined(self, other: Self) -> Self:
        """Return the candidates of both pools without duplicates, ranked."""
        misfit = torch.cat([self.misfit, other.misfit])
        both = Candidates(
            torch.cat([self.candidates.columns, other.candidates.columns]),
            torch.cat([self.candidates.off, other.candidates.off]),
        )
        first = first_of_each(both.off)
        return type(self)(both.at(first), misfit[first])._ordered()

    def _ordered(self) -> Self:
        """Return the pool ranked: true columns are sparse, and fit an example in the row space.

        A linear combination of two columns can be zero at one more unit than both are, and so compete with a column
        that has few zeros. But an example with exactly its active units rarely exists.
        """
        part = self.candidates.off.double().mean(dim=1)
        likely = part - _MISFIT * self.misfit + _FITS * (self.misfit == 0)
        order = torch.argsort(likely, descending=True, stable=True)[:_KEPT]
        return type(self)(self.candidates.at(order), self.misfit[order])


def _misfit(row_space: GradientRows, found: Candidates, sent: Tensor, steps: int = 6) -> Tensor:
    """Return the share of units at which every example in the row space contradicts a candidate, `(k,)`.

    A candidate is nonzero at the units that its example switches on: the sign of `W x + b`, which is linear in the
    example's coordinates in the row space. Whether such an example exists is a problem of linear separation, solved
    by logistic regression.
    """
    features = sent @ row_space.basis.mT
    features = features / features.norm(dim=1, keepdim=True).clamp(min=1e-30)
    signs = torch.where(found.off, -1.0, 1.0).double()
    weights = torch.linalg.lstsq(features, signs.mT).solution.mT
    ridge = 1e-7 * torch.eye(features.shape[1], dtype=torch.float64) * len(features)
    for _ in range(steps):
        wrong = torch.sigmoid(-(weights @ features.mT) * signs)
        curvature = wrong * (1 - wrong)
        hessian = torch.einsum("km,ma,mb->kab", curvature, features, features) + ridge
        weights = weights + torch.linalg.solve(hessian, (wrong * signs) @ features)
    missed: Tensor = (weights @ features.mT * signs <= 0).double().mean(dim=1)
    return missed
