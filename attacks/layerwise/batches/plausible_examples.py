"""Columns of the mixing matrix from plausible examples: points of the row space within the range of examples.

Examples lie in the row space of the gradient, their input to the bias is 1, and their other inputs are in a known
range. Such points form a polytope. Real examples have many inputs at an end of the range, such as black pixels, and
so are vertices of it, which linear programs with random objectives often find. The units that a vertex, or a point
between two, clearly switches off are guesses of where the example's column is zero. A column is kept only if it is
zero at more units than determine it, so a wrong guess does no harm.

Known columns shrink the search: an example's coordinates are orthogonal to the columns of all other examples, so the
missing examples lie in the orthogonal complement of the known columns.
"""

import warnings

import torch
from scipy.optimize import OptimizeWarning, linprog
from torch import Tensor

from metaleak.attacks.layerwise.batches.candidates import Candidates, GradientRows, first_of_each, from_units

_TOLERANCE = 1e-4
"""How far an input may leave its range, relative to the range's width, because of rounding."""

_BETWEEN = 200
"""The number of points between two vertices that are tried beside the vertices."""

_SHARES = (1.0, 0.9, 0.7, 0.4)
"""The shares of a point's off units that are tried, the most clearly off first: nearby examples share these."""


def from_plausible_examples(
    row_space: GradientRows,
    known: Tensor,
    sent: Tensor,
    low: Tensor,
    high: Tensor,
    programs: int,
    generator: torch.Generator,
) -> Candidates:
    """Return columns of examples between `low (n,)` and `high (n,)`, given the `known (k, b)` columns of others.

    `sent (l, n + 1)` are the weights and biases of the live units that the server sent. `programs` linear programs
    are solved, with objectives drawn from `generator`.
    """
    points = _vertices(row_space, known, low, high, programs, generator)
    if len(points) > 1:
        first, second = torch.randint(len(points), (2, _BETWEEN), generator=generator)
        part = torch.rand(_BETWEEN, 1, generator=generator, dtype=torch.float64)
        points = torch.cat([points, points[first] + part * (points[second] - points[first])])
    features = sent @ row_space.basis.mT
    margins = points @ (features / features.norm(dim=1, keepdim=True).clamp(min=1e-30)).mT
    order = margins.argsort(dim=1).argsort(dim=1)
    count = (margins < 0).sum(dim=1, keepdim=True)
    least = torch.tensor(row_space.rank + 1)
    off = torch.cat([order < torch.maximum((share * count).long(), least) for share in _SHARES])
    return from_units(row_space, off[first_of_each(off)])


def _vertices(
    row_space: GradientRows, known: Tensor, low: Tensor, high: Tensor, programs: int, generator: torch.Generator
) -> Tensor:
    """Return vertices `(t, b)` of the polytope of examples, none if it is empty or unbounded."""
    nothing = torch.zeros(0, row_space.rank, dtype=torch.float64)
    space = torch.linalg.svd(known, full_matrices=True)[2][len(known) :] if len(known) else torch.eye(row_space.rank)
    space = space.double()
    to_bias = space @ row_space.basis[:, -1]
    if float(to_bias.norm()) < 1e-9:
        return nothing
    origin = to_bias / to_bias.square().sum() @ space
    if len(space) == 1:
        return origin[None]
    directions = torch.linalg.svd(to_bias[None], full_matrices=True)[2][1:] @ space
    start, slopes = origin @ row_space.basis[:, :-1], directions @ row_space.basis[:, :-1]
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
