"""The coordinates in which images are optimized: pixels, or the few directions that matter to a dense first layer.

With a dense first layer, the matching loss depends on an image only through its inner products with the layer's
weights, the other images and the rows of the observed gradient. No gradient step leaves the span of these, so 784
pixels can be replaced by about 80 coordinates without changing the loss, for a tenth of the work.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.clients.episode import Parameters

_NUMERICAL_RANK = 1e-5
"""Singular values below this, relative to the largest, are rounding errors of float32 gradients."""


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of T targets' reconstructions.

    `parameters` of the model and observed `gradients (T, ...)` are in these coordinates, in which an image has the
    shape `shape`. With a dense first layer `first`, `basis (T, pixels, K)` has orthonormal columns,
    `parameters[first]` is stacked `(T, ...)`, the columns of `gradients[first]` are multiplied by `weights (T, K)`,
    and the first `seen` columns span the rows of the observed gradient.
    """

    parameters: Parameters
    gradients: Parameters
    shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    first: str | None = None
    basis: Tensor | None = None
    weights: Tensor | None = None
    seen: int = 0

    @property
    def boxed(self) -> bool:
        """Whether values are pixels, which can be kept in [0, 1]."""
        return self.basis is None

    def enter(self, images: Tensor) -> Tensor:
        """Return `images (T, M, C, H, W)`, projected on the span if there is one, as `(T, M, *shape)`."""
        if self.basis is None:
            return images
        return (images.flatten(2).double() @ self.basis).float().reshape(*images.shape[:2], *self.shape)

    def leave(self, inside: Tensor) -> Tensor:
        """Return `inside (T, M, *shape)` as images `(T, M, C, H, W)`."""
        if self.basis is None:
            return inside
        return (inside.flatten(2).double() @ self.basis.mT).float().reshape(*inside.shape[:2], *self.input_shape)

    def outside(self, inside: Tensor) -> Tensor:
        """Return the norm of the part of `inside (T, *shape)` outside of the observed row space, `(T,)`.

        With pixels there is no such space (`seen` is 0), and it is the whole norm.
        """
        length: Tensor = inside.flatten(1)[:, self.seen :].norm(dim=1)
        return length


def pixels(parameters: Parameters, gradients: Parameters, input_shape: tuple[int, ...]) -> Coordinates:
    """Return pixels as coordinates, which suit any model."""
    return Coordinates(parameters, gradients, input_shape, input_shape)


def row_space(gradient: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Return the leading singular values `(T, R)` and right vectors `(T, R, pixels)` of `gradient (T, H, pixels)`.

    The first layer's gradient is a sum of one outer product per image, so R is at most `images`; further directions
    are noise and dropped. Values below the numerical rank are raised to the smallest value above it.
    """
    _, values, vectors = torch.linalg.svd(gradient.double(), full_matrices=False)
    values, vectors = values[:, :images], vectors[:, :images]
    real = values > _NUMERICAL_RANK * values[:, :1]
    smallest = torch.where(real, values, torch.inf).amin(dim=1, keepdim=True)
    # A gradient of zeros has no smallest value; ones keep the weights finite.
    smallest = torch.where(smallest.isfinite(), smallest, torch.ones_like(smallest))
    return torch.where(real, values, smallest), vectors


def seen_by_dense_layer(
    first: str,
    parameters: Parameters,
    gradients: Parameters,
    space: tuple[Tensor, Tensor],
    images: Tensor,
    whitening: float,
) -> Coordinates:
    """Return the coordinates of a model whose first layer, the weight `first (H, pixels)`, is dense.

    `gradients (T, ...)` are the observed ones and `space` is their `row_space`; `images (T, M, C, H, W)` must be in
    the span. `whitening` w in [0, 1] multiplies the direction with singular value s by s**-w: 0 leaves the gradient
    unchanged, 1 gives all directions the same weight. With it, support images, whose part of a meta-gradient is some
    thirty times weaker, have an effect beside the query images.
    """
    values, vectors = space
    count, seen = vectors.shape[:2]
    weight = parameters[first].double()
    spanning = torch.cat([vectors, images.flatten(2).double(), weight.expand(count, -1, -1)], dim=1)
    basis, _ = torch.linalg.qr(spanning.mT)
    inside = gradients[first].double() @ basis
    weights = values[:, -1:].expand(-1, basis.shape[2]).clone()
    weights[:, :seen] = values
    weights = weights**-whitening
    weighted = inside * weights[:, None]
    # The weighted gradient keeps its norm, so that whitening does not change the layer's weight in the loss.
    norms = [part.flatten(1).norm(dim=1)[:, None] for part in (inside, weighted)]
    scale = torch.where(norms[1] > 0, norms[0] / norms[1], torch.ones_like(norms[0]))
    return Coordinates(
        parameters={**parameters, first: (weight @ basis).float()},
        gradients={**gradients, first: (weighted * scale[:, None]).float()},
        shape=(1, 1, basis.shape[2]),
        input_shape=tuple(images.shape[2:]),
        first=first,
        basis=basis,
        weights=(weights * scale).float(),
        seen=seen,
    )
