"""An inner product that whitens per-image gradients by their covariance.

Components that all images have in common hide those that are specific to one. The covariance of a layer's gradients
is close to a Kronecker product (K-FAC, Martens & Grosse 2015). Its eigenbasis, with variances measured in this basis
(EK-FAC, George et al. 2018), can be estimated from far fewer images than the layer has weights. Common directions
that remain are removed by principal components.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_FLOOR = 1e-5
"""Variances are raised by this fraction of their tensor's mean, so that unobserved directions stay finite."""


@dataclass(frozen=True)
class Whitening:
    """An inner product on vectors of D entries, the concatenated tensors of `shapes`.

    `left` and `right` are the orthogonal matrices of each tensor's basis; in it, entries are multiplied by
    `scale (D,)`. The orthonormal directions `common (D, R)` of the result are then multiplied by 1 - `strength (R,)`.
    """

    shapes: tuple[tuple[int, ...], ...]
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    scale: Tensor
    common: Tensor
    strength: Tensor

    def white(self, vectors: Tensor) -> Tensor:
        """Return `vectors (B, D)` in the basis where all entries have about the same variance."""
        return _rotated(vectors, self.shapes, self.left, self.right) * self.scale

    def own(self, white: Tensor) -> Tensor:
        """Return `white (B, D)` with its common directions damped."""
        return white - ((white @ self.common) * self.strength) @ self.common.mT

    def norm(self, white: Tensor) -> Tensor:
        """Return the norm of each of `white (B, D)` in the inner product, `(B,)`."""
        squares = white.square().sum(dim=1) - ((white @ self.common).square() * self.strength).sum(dim=1)
        return squares.clamp(min=1e-30).sqrt()

    def by_tensor(self, products: Tensor) -> Tensor:
        """Return the sums of `products (B, D)` over each tensor's entries, `(B, tensors)`."""
        sizes = [math.prod(shape) for shape in self.shapes]
        return torch.stack([part.sum(dim=1) for part in torch.split(products, sizes, dim=1)], dim=1)


def fit(samples: Tensor, shapes: tuple[tuple[int, ...], ...], noise: Tensor, components: float) -> Whitening:
    """Return the whitening fitted to `samples (N, D)`, contributions of images to a gradient.

    `noise (tensors,)` is the variance of a defense's noise on an entry of each tensor, in the units of the samples.
    The leading fraction `components`, in [0, 1), of the N principal directions counts as common.
    """
    centered = samples - samples.mean(dim=0)
    left, right = zip(*(_bases(part, shape) for part, shape in _parts(centered, shapes)), strict=True)
    rotated = _rotated(centered, shapes, left, right)
    variance = rotated.square().mean(dim=0)
    sizes = [math.prod(shape) for shape in shapes]
    floor = torch.cat(
        [
            (part.mean() * _FLOOR + extra + 1e-30).expand(len(part))
            for part, extra in zip(torch.split(variance, sizes), noise, strict=True)
        ]
    )
    scale = (variance + floor).rsqrt()
    common, strength = _common(rotated.mul_(scale), int(components * len(samples)))
    return Whitening(shapes, left, right, scale, common, strength)


def _parts(vectors: Tensor, shapes: tuple[tuple[int, ...], ...]) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Return each tensor's part of `vectors (B, D)` as matrices `(B, rows, columns)`; vectors have one column."""
    sizes = [math.prod(shape) for shape in shapes]
    return [
        (part.reshape(len(vectors), shape[0] if shape else 1, -1), shape)
        for part, shape in zip(torch.split(vectors, sizes, dim=1), shapes, strict=True)
    ]


def _bases(matrices: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the eigenbases of the rows' and of the columns' covariance of `matrices (N, rows, columns)`."""
    rows = torch.einsum("nab,ncb->ac", matrices, matrices)
    columns = torch.einsum("nab,nac->bc", matrices, matrices)
    return tuple(torch.linalg.eigh(covariance.double())[1].float() for covariance in (rows, columns))


def _rotated(
    vectors: Tensor, shapes: tuple[tuple[int, ...], ...], left: tuple[Tensor, ...], right: tuple[Tensor, ...]
) -> Tensor:
    parts = [
        (rows.mT @ part @ columns).flatten(1)
        for (part, _), rows, columns in zip(_parts(vectors, shapes), left, right, strict=True)
    ]
    return torch.cat(parts, dim=1)


def _common(white: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the leading `count` principal directions `(D, R)` of `white (N, D)` and the strength of each."""
    products = (white @ white.mT).double() / len(white)
    values, vectors = torch.linalg.eigh(products)
    values, vectors = values.flip(0)[:count].clamp(min=0.0), vectors.flip(1)[:, :count]
    directions = white.mT @ (vectors / (values * len(white)).clamp(min=1e-30).sqrt()).float()
    return directions, (values / (values + 1.0)).float()
