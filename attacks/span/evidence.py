"""The evidence that an image x contributed a term a x' to a first-layer gradient G.

Model: the rows of G (H, P) are draws from N(0, S). The unknown S has an inverse Wishart prior with the scale matrix
Lambda = noise + second moment of images. Integrated over S, the likelihood of G is a power of |Lambda + G'G|. So the
evidence for an image x with the coefficients a (H,) is how far that determinant falls when a x' is subtracted from G:


    |Lambda + (G - a x')'(G - a x')| / |Lambda + G'G| = (1 - a'w)^2 + a'K a c,      K = (1 + G Lambda^-1 G')^-1,
    w = K G Lambda^-1 x,   c = x'(Lambda + G'G)^-1 x.

Minimized over the scale of a, the ratio is 1 / (1 + (a'w)^2 / (a'K a c)). c is small if x lies in the span of the
rows, with large coefficients (Capon 1969); w are the coefficients of x, free of the contributions of the learner's
other images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_SHARE = 10.0
"""The weight of images in Lambda, relative to noise; 1 to 100 were about equally good on MNIST at every noise."""


_SQUARED = 1e8
"""Up to this trace 1 + G Lambda^-1 G' is inverted directly: the inverse then has at least eight digits."""


@dataclass(frozen=True)
class WhitenedGradient:
    """A whitened gradient: `rows (H, P)` is G Lambda^-1/2, and `left_over (H, H)` is K of the module's formulas.

    `root (P, P)` is lower triangular with Lambda = `root root'`; `onto (H, P)` and `back (H, H)` are factors with K G
    Lambda^-1/2 = `back' onto`.
    """

    rows: Tensor
    left_over: Tensor
    root: Tensor
    onto: Tensor
    back: Tensor


@dataclass(frozen=True)
class Seen:
    """T images in a gradient: `dual (T, H)` is w and `unexplained (T,)` is c of the module's formulas.

    `white (T, P)` are the images times Lambda^-1/2.
    """

    dual: Tensor
    unexplained: Tensor
    white: Tensor


def whitened(gradient: Tensor, others: Tensor | None, deviation: float) -> WhitenedGradient:
    """Return the whitened `gradient (H, P)`, float64, given noise of standard `deviation` > 0 on every entry.

    `others (P, P)` is the second moment of rows of other learners' gradients, at any scale; with `None` Lambda has
    only the noise.
    """
    root = prior_root(gradient, others, deviation)
    return whitened_by(root, gradient)


def prior_root(gradient: Tensor, others: Tensor | None, deviation: float) -> Tensor:
    """Return the lower triangular root `(P, P)` of Lambda for a gradient like `gradient (H, P)`; see `whitened`."""
    height, width = gradient.shape
    prior = torch.eye(width, dtype=gradient.dtype, device=gradient.device)
    if others is not None:
        prior = prior + _SHARE * height / others.trace().clamp(min=1e-300) * others
    root: Tensor = torch.linalg.cholesky(prior * (deviation**2 * width))
    return root


def whitened_by(root: Tensor, gradient: Tensor) -> WhitenedGradient:
    """Return the whitened `gradient (H, P)` for the `root (P, P)` of Lambda."""
    rows = torch.linalg.solve_triangular(root, gradient.mT, upper=False).mT
    square = rows @ rows.mT
    unit = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    if float(square.trace()) < _SQUARED:
        left_over = torch.cholesky_inverse(torch.linalg.cholesky(square + unit))
        return WhitenedGradient(rows, left_over, root, rows, left_over)
    # Five times slower, but it squares no singular value; without noise, squares exceed the precision of float64.
    upright, triangle = torch.linalg.qr(torch.cat([rows.mT, unit]))
    inverse = torch.linalg.solve_triangular(triangle, unit, upper=True)
    return WhitenedGradient(rows, inverse @ inverse.mT, root, upright[: rows.shape[1]].mT, inverse.mT)


def seen(gradient: WhitenedGradient, images: Tensor) -> Seen:
    """Return the `dual` coefficients and the `unexplained` part of `images (T, P)`, float64, in this gradient."""
    white = torch.linalg.solve_triangular(gradient.root, images.mT, upper=False).mT
    dual = white @ gradient.onto.mT @ gradient.back
    # c is the minimum of |x - G'a|^2 + |a|^2, whitened, at a = w: a difference of squares would lose its digits.
    rest = white - dual @ gradient.rows
    return Seen(dual, rest.square().sum(dim=1) + dual.square().sum(dim=1), white)


def evidence_of_units(gradient: WhitenedGradient, image: Seen, activity: Tensor) -> Tensor:
    """Return log-likelihood ratios `(T,)`, maximized over coefficients of each unit weighted by `activity (T, H)`.

    K is approximated by its diagonal, so each unit's coefficient is free; units that the image leaves inactive do not
    count.
    """
    spread = gradient.left_over.diagonal()
    energy = ((image.dual * activity).square() / spread.clamp(min=1e-300)).sum(dim=1)
    return len(gradient.rows) / 2 * torch.log1p(energy / image.unexplained.clamp(min=1e-300))


def evidence_of_direction(gradient: WhitenedGradient, image: Seen, direction: Tensor) -> Tensor:
    """Return signed log-likelihood ratios `(T,)`, maximized over multiples of `direction (T, H)` as coefficients.

    The sign is that of the best multiple. A direction of zeros gives 0.
    """
    spread = (direction @ gradient.left_over * direction).sum(dim=1)
    along = (image.dual * direction).sum(dim=1)
    energy = along.square() / (spread * image.unexplained).clamp(min=1e-300)
    return len(gradient.rows) / 2 * along.sign() * torch.log1p(energy)
