"""Candidates in the order of how likely they are the coefficients of single examples."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metaleak.attacks.layerwise.batches.candidates import Candidates, Spectrum, first_of_each

_KEPT = 1000
"""Candidates that are kept at most."""

_MISFIT = 0.25
"""What a part of the units that contradicts every example counts beside a part of units that are off."""

_FITS = 0.07
"""What it counts that no unit contradicts."""


@dataclass(frozen=True)
class Pool:
    """Candidates in the order of how likely they are single examples' coefficients, with their `misfit (k,)`."""

    candidates: Candidates
    misfit: Tensor

    @classmethod
    def empty(cls, spectrum: Spectrum) -> Self:
        """Return a pool without candidates."""
        columns = torch.zeros(0, spectrum.rank, dtype=torch.float64)
        off = torch.zeros(0, len(spectrum.rows), dtype=torch.bool)
        return cls(Candidates(columns, off), columns[:, 0])

    @classmethod
    def of(cls, spectrum: Spectrum, candidates: Candidates, sent: Tensor) -> Self:
        """Return the pool of these candidates at the parameters that were `sent (l, n + 1)`."""
        return cls(candidates, _misfit(spectrum, candidates, sent))._ordered()

    def joined(self, other: Self) -> Self:
        """Return both in their order, each once."""
        misfit = torch.cat([self.misfit, other.misfit])
        both = Candidates(
            torch.cat([self.candidates.columns, other.candidates.columns]),
            torch.cat([self.candidates.off, other.candidates.off]),
        )
        first = first_of_each(both.off)
        return type(self)(both.at(first), misfit[first])._ordered()

    def _ordered(self) -> Self:
        """Return the likeliest first: few sums of columns are as sparse as one, and hardly any fits an example.

        A sum of two columns can be made zero for one more unit than both leave off, and so compete with a column of
        few zeros; but an example that switches on just these units is a coincidence.
        """
        part = self.candidates.off.double().mean(dim=1)
        likely = part - _MISFIT * self.misfit + _FITS * (self.misfit == 0)
        order = torch.argsort(likely, descending=True, stable=True)[:_KEPT]
        return type(self)(self.candidates.at(order), self.misfit[order])


def _misfit(spectrum: Spectrum, found: Candidates, sent: Tensor, steps: int = 6) -> Tensor:
    """Return for each candidate by what part of the units no example of the span has its activity `(k,)`.

    The activity of an example x is the sign of `W x + b`, linear in the example's coordinates in the span: whether
    there is one is a question of linear separation, answered by logistic regression.
    """
    features = sent @ spectrum.basis.mT
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
