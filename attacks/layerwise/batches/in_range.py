"""Columns of the mixing matrix by way of examples that lie in the range of examples.

Examples lie in the row space of the gradient, their input to the bias is 1, and their other inputs are in a known
range: a polytope. Real examples have many inputs at an end of the range, black pixels above all, and so are vertices
of it that linear programs with random objectives often find. Which units a vertex, or a point between two, switches
off by far says where its column is zero; the column is kept only if it is zero for more units than determine it, so
that a wrong guess does no harm.

With columns that are known already there is less to look for: an example's coordinates are orthogonal to the columns
of all others, so those that are missing lie in the complement of the known columns.
"""

import warnings

import torch
from scipy.optimize import OptimizeWarning, linprog
from torch import Tensor

from metaleak.attacks.layerwise.batches.candidates import Candidates, Spectrum, first_of_each, from_units

_TOLERANCE = 1e-4
"""By what part of its range an input may leave it: what rounding does."""

_BETWEEN = 200
"""Points on lines from one vertex to another that are tried beside the vertices."""

_SHARES = (1.0, 0.9, 0.7, 0.4)
"""What parts of the units that a point switches off are taken, those by far first: points near it do so, too."""


def by_examples(
    spectrum: Spectrum,
    known: Tensor,
    sent: Tensor,
    low: Tensor,
    high: Tensor,
    programs: int,
    generator: torch.Generator,
) -> Candidates:
    """Return the columns of examples in `low (n,)` to `high (n,)` whose coordinates are orthogonal to `known (k, b)`.

    `sent (l, n + 1)` are weights and biases of the live units as they were sent. `programs` linear programs are
    solved, with objectives drawn from `generator`.
    """
    points = _vertices(spectrum, known, low, high, programs, generator)
    if len(points) > 1:
        first, second = torch.randint(len(points), (2, _BETWEEN), generator=generator)
        part = torch.rand(_BETWEEN, 1, generator=generator, dtype=torch.float64)
        points = torch.cat([points, points[first] + part * (points[second] - points[first])])
    features = sent @ spectrum.basis.mT
    margins = points @ (features / features.norm(dim=1, keepdim=True).clamp(min=1e-30)).mT
    order = margins.argsort(dim=1).argsort(dim=1)
    count = (margins < 0).sum(dim=1, keepdim=True)
    least = torch.tensor(spectrum.rank + 1)
    off = torch.cat([order < torch.maximum((share * count).long(), least) for share in _SHARES])
    return from_units(spectrum, off[first_of_each(off)])


def _vertices(
    spectrum: Spectrum, known: Tensor, low: Tensor, high: Tensor, programs: int, generator: torch.Generator
) -> Tensor:
    """Return vertices `(t, b)` of the polytope of examples, none where it is empty or has no end."""
    nothing = torch.zeros(0, spectrum.rank, dtype=torch.float64)
    space = torch.linalg.svd(known, full_matrices=True)[2][len(known) :] if len(known) else torch.eye(spectrum.rank)
    space = space.double()
    to_bias = space @ spectrum.basis[:, -1]
    if float(to_bias.norm()) < 1e-9:
        return nothing
    origin = to_bias / to_bias.square().sum() @ space
    if len(space) == 1:
        return origin[None]
    directions = torch.linalg.svd(to_bias[None], full_matrices=True)[2][1:] @ space
    start, slopes = origin @ spectrum.basis[:, :-1], directions @ spectrum.basis[:, :-1]
    lengths = slopes.norm(dim=0)
    moves = lengths > 1e-6 * lengths.max()
    slack = _TOLERANCE * (high - low)
    above, below = (high + slack - start)[moves], (start - low + slack)[moves]
    matrix, limits = torch.cat([slopes.mT[moves], -slopes.mT[moves]]).numpy(), torch.cat([above, below]).numpy()
    found = []
    for objective in torch.randn(programs, len(directions), generator=generator, dtype=torch.float64).numpy():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            solved = linprog(objective, A_ub=matrix, b_ub=limits, bounds=(None, None), method="highs-ds")
        if solved.status == 2:
            return nothing
        if solved.status == 0:
            found.append(origin + torch.from_numpy(solved.x) @ directions)
    return torch.stack(found) if found else nothing
