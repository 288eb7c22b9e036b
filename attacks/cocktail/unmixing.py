"""Independent component analysis of images: sources are found by properties that images have and mixtures do not.

Kariyappa et al. (ICML 2023) minimize a sum of terms on whitened mixtures, with Adam: the negentropy of each source
(by squares of log cosh), its total variation, and the similarity of rows of the unmixing matrix. Added here are a
term for values outside of an image's range, and restarts of rows whose source another row has found, too.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaleak.attacks.inversion.descent import remaining
from metaleak.attacks.inversion.matching import total_variation

_STEP = 0.03
"""Adam's initial learning rate, for rows of length 1."""

_SHARPNESS = 4.0
"""The exponent with which the penalty on two rows grows with their cosine; the paper's are 7.7 and 12.4."""

_SAME = 0.95
"""Sources with a correlation above this count as the same image."""

_IN_RANGE = 0.02
"""The largest fraction of a source's energy outside of the range of images for it to count as an image."""


@dataclass(frozen=True)
class Mixture:
    """K linear combinations of images that span the same space as the images, which have `input_shape` and P pixels.

    A row u `(K,)` gives the source `u @ white`, where `white (K, P)` has mean 0 and the identity as covariance over
    pixels. The source is the image `u @ raw / (u @ sizes)` with `raw (K, P)` and `sizes (K,)`; if `sizes` are unknown
    (`None`), an image is determined only up to a factor of either sign.
    """

    white: Tensor
    raw: Tensor
    sizes: Tensor | None
    input_shape: tuple[int, ...]

    def in_type(self, dtype: torch.dtype) -> "Mixture":
        """Return the mixture with tensors of this type."""
        sizes = None if self.sizes is None else self.sizes.to(dtype)
        return replace(self, white=self.white.to(dtype), raw=self.raw.to(dtype), sizes=sizes)


@dataclass(frozen=True)
class Priors:
    """The weights of the terms beside negentropy, each 0 or more.

    `smooth`: of a source's total variation; `apart`: of the similarity of rows; `range`: of the fraction of a
    source's energy outside of [0, 1].
    """

    smooth: float
    apart: float
    range: float


def mixture(basis: Tensor, input_shape: tuple[int, ...], sized: bool) -> Mixture:
    """Return the whitened mixture of `basis (K, P)`, whose rows span a space of images.

    `sized`: the basis has one more column, `(K, P + 1)`, for the constant input 1 that every image has. Directions
    that are constant over pixels are dropped, so K may decrease by one.
    """
    pixels = math.prod(input_shape)
    centered = basis[:, :pixels] - basis[:, :pixels].mean(dim=1, keepdim=True)
    energy, axes = torch.linalg.eigh(centered @ centered.mT / pixels)
    known = energy > 1e-10 * energy[-1]
    whiten = (axes[:, known] / energy[known].sqrt()).mT
    turned = whiten @ basis
    return Mixture(whiten @ centered, turned[:, :pixels], turned[:, pixels] if sized else None, input_shape)


def objective(rows: Tensor, mixed: Mixture, priors: Priors) -> Tensor:
    """Return the objective that unmixing minimizes, a scalar, for `rows (N, K)` of any nonzero length.

    Logarithms are natural; terms are means over sources and pixels, in units of whitened sources. Images must be at
    least two pixels wide and high, since a single pixel has no neighbor.
    """
    rows = rows / rows.norm(dim=1, keepdim=True)
    sources = rows @ mixed.white
    # log cosh of x without the overflow of cosh.
    curved = sources.abs() + torch.log1p(torch.exp(-2 * sources.abs())) - math.log(2)
    loss = -2 * curved.mean()
    if priors.smooth:
        loss = loss + priors.smooth * total_variation(sources.reshape(-1, *mixed.input_shape))
    if priors.apart and len(rows) > 1:
        others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        loss = loss + priors.apart * (_SHARPNESS * (rows @ rows.mT).abs()).expm1().mul(others).mean()
    if priors.range and mixed.sizes is not None:
        loss = loss + priors.range * out_of_range(rows, mixed).mean()
    return loss


def out_of_range(rows: Tensor, mixed: Mixture) -> Tensor:
    """Return the fraction of each source's energy outside of the range of images, `(N,)` in [0, 1].

    It is 0 for true images. The mixture's `sizes` must be known.
    """
    assert mixed.sizes is not None
    size = rows @ mixed.sizes
    values = (rows @ mixed.raw) * torch.sign(size)[:, None]
    beyond = torch.relu(-values) + torch.relu(values - size.abs()[:, None])
    return beyond.square().sum(dim=1) / values.square().sum(dim=1).clamp(min=1e-30)


def unmix(mixed: Mixture, priors: Priors, iterations: int, restarts: int, generator: torch.Generator) -> Tensor:
    """Return unmixing rows of length 1, `(K, K)`, one for each possible source.

    All rows descend together for `iterations` steps, from random directions. Rows that found the same source as
    another, or one that cannot be an image, are drawn anew, orthogonal to the others, and all descend again, at most
    `restarts` times.
    """
    count = len(mixed.white)
    rows = _directions(count, mixed.white, generator)
    for turn in range(restarts + 1):
        if turn:
            kept = rows[found(rows, mixed)]
            if len(kept) == count:
                break
            fresh = _directions(count, mixed.white, generator)[: count - len(kept)]
            basis, _ = torch.linalg.qr(kept.mT)
            rows = torch.cat([kept, _unit(fresh - (fresh @ basis) @ basis.mT)])
        rows = _descended(rows, mixed, priors, iterations)
    return rows


def found(rows: Tensor, mixed: Mixture) -> Tensor:
    """Return the indices of rows with distinct sources that can be images, the most plausible first."""
    sources = _unit(rows @ mixed.white)
    alike = (sources @ sources.mT).abs()
    order = list(range(len(rows)))
    if mixed.sizes is not None:
        beyond = out_of_range(rows, mixed)
        order = [place for place in beyond.argsort().tolist() if float(beyond[place]) <= _IN_RANGE]
    kept: list[int] = []
    for place in order:
        if not kept or float(alike[place, kept].max()) < _SAME:
            kept.append(place)
    return torch.tensor(kept, dtype=torch.int64, device=rows.device)


def images(rows: Tensor, mixed: Mixture) -> Tensor:
    """Return the sources as images in [0, 1], `(N, P)`.

    If `sizes` are unknown, sources get the sign that makes their mean positive and are stretched to the range.
    """
    values = rows @ mixed.raw
    if mixed.sizes is not None:
        size = rows @ mixed.sizes
        return (values / torch.where(size == 0, torch.inf, size)[:, None]).clamp(0.0, 1.0)
    values = values * torch.sign(values.mean(dim=1, keepdim=True))
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-30)


def _descended(rows: Tensor, mixed: Mixture, priors: Priors, iterations: int) -> Tensor:
    rows = rows.clone().requires_grad_()
    adam = torch.optim.Adam([rows])
    for step in range(iterations):
        adam.param_groups[0]["lr"] = _STEP * remaining("linear", step, iterations)
        (rows.grad,) = torch.autograd.grad(objective(rows, mixed, priors), rows)
        adam.step()
    return _unit(rows.detach())


def _directions(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(count, count, generator=generator, dtype=torch.float64)
    return _unit(drawn.to(like))


def _unit(rows: Tensor) -> Tensor:
    length: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / length.clamp(min=1e-30)
