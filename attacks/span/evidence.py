"""The evidence that an image was one of those that a first-layer gradient is made of.

Model. The rows of the gradient G (H, P) are draws of N(0, S), and S, unknown, has an inverse Wishart prior around
Lambda = noise + what images look like on average. Integrated over S, the likelihood of G is a power of
|Lambda + G'G|, so the evidence for an image x with the coefficients a (H,) is how far that determinant falls when
a x' is taken out of G:

    |Lambda + (G - a x')'(G - a x')| / |Lambda + G'G| = (1 - a'w)^2 + a'K a c,      K = (1 + G Lambda^-1 G')^-1,
    w = K G Lambda^-1 x,   c = x'(Lambda + G'G)^-1 x.

Minimized over the scale of a that is 1 / (1 + (a'w)^2 / (a'K a c)). For c see Capon 1969: c is small if x lies in the
rows' span, with large coefficients; w are the coefficients of x, cleared of all other images of the learner.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_SHARE = 10.0
"""How much of Lambda is images, in units of the noise. 1 to 100 did about as well on MNIST with every noise tried."""


@dataclass(frozen=True)
class WhitenedGradient:
    """G Lambda^-1/2 = `left (H, R)` diag(`values (R,)`) `right (R, P)`, where Lambda = `root root'` is `(P, P)`."""

    left: Tensor
    values: Tensor
    right: Tensor
    root: Tensor


@dataclass(frozen=True)
class Seen:
    """T images as a gradient sees them: `dual (T, H)` is w and `unexplained (T,)` is c of the module's formulas."""

    dual: Tensor
    unexplained: Tensor


def whitened(gradient: Tensor, others: Tensor | None, deviation: float) -> WhitenedGradient:
    """Return the decomposition of `gradient (H, P)`, float64, with noise of `deviation` > 0 on every entry.

    `others (P, P)` is the second moment of rows of other learners' gradients, of any scale; `None`: nothing is known
    of images.
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
    """Return the decomposition of `gradient (H, P)` for the root `(P, P)` of Lambda."""
    white = torch.linalg.solve_triangular(root, gradient.mT, upper=False)
    # The singular values of the small triangle: three times faster than those of the whole matrix.
    tall, triangle = torch.linalg.qr(white)
    right, values, left = torch.linalg.svd(triangle, full_matrices=False)
    return WhitenedGradient(left.mT, values, (tall @ right).mT, root)


def seen(gradient: WhitenedGradient, images: Tensor) -> Seen:
    """Return what the gradient has of `images (T, P)`, float64."""
    white = torch.linalg.solve_triangular(gradient.root, images.mT, upper=False).mT
    inside = white @ gradient.right.mT
    # The rest as a vector: its norm as a difference of norms would drown in rounding where an image lies in the span.
    outside = (white - inside @ gradient.right).square().sum(dim=1)
    shrunk = inside / (1 + gradient.values.square())
    return Seen((shrunk * gradient.values) @ gradient.left.mT, outside + (shrunk * inside).sum(dim=1))


def evidence_of_units(gradient: WhitenedGradient, image: Seen, activity: Tensor) -> Tensor:
    """Return the log ratios `(T,)`, maximized over coefficients that are as large as `activity (T, H)` allows.

    Unit by unit, as if K were diagonal: what a unit that an image leaves inactive has of it speaks for nothing.
    """
    spread = 1 - gradient.left.square() @ (gradient.values.square() / (1 + gradient.values.square()))
    if gradient.left.shape[0] <= gradient.left.shape[1]:
        spread = gradient.left.square() @ (1 / (1 + gradient.values.square()))
    energy = ((image.dual * activity).square() / spread.clamp(min=1e-300)).sum(dim=1)
    return len(gradient.left) / 2 * torch.log1p(energy / image.unexplained.clamp(min=1e-300))


def evidence_of_direction(gradient: WhitenedGradient, image: Seen, direction: Tensor) -> Tensor:
    """Return the log ratios `(T,)`, maximized over the positive multiples of `direction (T, H)` as coefficients.

    Negative where the best multiple is. A direction of zeros gives 0.
    """
    inside = direction @ gradient.left
    beyond = (direction - inside @ gradient.left.mT).square().sum(dim=1)
    spread = (inside.square() / (1 + gradient.values.square())).sum(dim=1) + beyond
    along = (image.dual * direction).sum(dim=1)
    energy = along.square() / (spread * image.unexplained).clamp(min=1e-300)
    return len(gradient.left) / 2 * along.sign() * torch.log1p(energy)
