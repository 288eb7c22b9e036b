"""The evidence that a known space is spanned by noisy images, among them a noisy version of the target."""

import math

import torch
from torch import Tensor

_STEPS = 60
_NEAR = 1e-10
"""The relative step size at which the search for the saddle point ends; there, errors enter squared."""


def noisy_precision(covariance: Tensor, deviation: float) -> Tensor:
    """Return the inverse second moment `(P, P)` of noisy images, given that of clean images, `covariance (P, P)`."""
    inverse: Tensor = torch.linalg.inv(covariance + deviation**2 * torch.ones_like(covariance.diagonal()).diag())
    return inverse


def noisy_span_evidence(
    images: Tensor, basis: Tensor, precision: Tensor, deviation: float, dimensions: int | None = None
) -> Tensor:
    """Return log-likelihood ratios, up to a constant, that the space contains a noisy version of an image, `(T,)`.

    The model is approximate, and the constant differs between gradients, so the ratio only ranks the targets of one
    gradient.

    `images (T, P)` are the clean images x; `basis (n, P)` has orthonormal rows; `precision (P, P)` is the
    `noisy_precision` W; `deviation` > 0 is the standard deviation of the independent noise on every pixel of the
    noisy version y. All lie in a subspace of `dimensions` dimensions, by default P. Float64.

    If x is not a member, the space is spanned by random noisy images: whitened by W, its orientation is uniform. If y
    is one of the images that span it, the density of spaces through y is proportional to (y^T W y)^(k/2), k =
    dimensions - n, since a given distance is a smaller angle for a longer y. So for a member x

        LR(x) = integral over y in the space of  N(y; x, deviation^2) (y^T W y)^(k/2) dy.

    The integral is a moment of a quadratic form in Gaussians, computed by saddle-point approximation (relative error
    below 1 / n). It has two factors: one for the distance of x from the space, and one for how unusual points of the
    space near the projection of x would be in the span of other images.
    """
    projection = images @ basis.mT
    distance = (images - projection @ basis).square().sum(dim=1)
    return evidence_of_projection(
        projection, distance, basis @ precision @ basis.mT, deviation, dimensions or basis.shape[1]
    )


def evidence_of_projection(
    projection: Tensor, distance: Tensor, form: Tensor, deviation: float, dimensions: int
) -> Tensor:
    """Return `noisy_span_evidence`, `(T,)`, of images given by their projections on the space.

    `projection (T, n)` are their coordinates in the basis, `distance (T,)` their squared distances from the space,
    and `form (n, n)` is the precision in the basis.
    """
    values, vectors = torch.linalg.eigh(form)
    moment = _log_moment(projection @ vectors, values.clamp(min=0), deviation, (dimensions - len(form)) / 2)
    return moment - distance / (2 * deviation**2)


def _log_moment(mean: Tensor, values: Tensor, deviation: float, power: float) -> Tensor:
    """Return log E[q^power], `(T,)`, of q = sum_i values_i y_i^2 with y_i independent N(mean_i, deviation^2).

    E[q^p] = p! / (2 pi i) times the contour integral of the moment generating function over t^(p+1); `mean (T, n)`.
    """
    shifted = values * mean.square()
    scaled = 2 * deviation**2 * values
    low = mean.new_zeros(len(mean))
    high = torch.full_like(low, 1 / float(scaled.max()))
    point = (low + high) / 2
    for _ in range(_STEPS):
        left = 1 - point[:, None] * scaled
        slope = (scaled / (2 * left) + shifted / left.square()).sum(dim=1)
        bend = (scaled.square() / (2 * left.square()) + 2 * shifted * scaled / left**3).sum(dim=1)
        over = point * slope > power + 1
        low, high = torch.where(over, low, point), torch.where(over, point, high)
        # Newton's step for the logarithm, which is nearly linear both at 0 and at the pole; otherwise a bisection.
        step = ((point * slope).log() - math.log(power + 1)) / (1 / point + bend / slope)
        following = point - step
        inside = (following >= low) & (following <= high)
        following = torch.where(inside, following, (low + high) / 2)
        moved, point = (following - point).abs(), following
        if bool((moved <= _NEAR * point).all()):
            break
    left = 1 - point[:, None] * scaled
    cumulant = (point[:, None] * shifted / left - left.log() / 2).sum(dim=1)
    curvature = (scaled.square() / (2 * left.square()) + 2 * shifted * scaled / left**3).sum(dim=1)
    width = curvature + (power + 1) / point.square()
    constant = math.lgamma(power + 1) - math.log(2 * math.pi) / 2
    return constant + cumulant - (power + 1) * point.log() - width.log() / 2
