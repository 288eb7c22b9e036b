"""Starting points of unknown images; the target starts at itself."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from metaleak.attacks.seeding import generator_for

_SHARE = 0.7
"""The norm of an image's common and of its individual part, relative to the target's norm."""

_NOISE = 0.02
"""The standard deviation of a blurred start's noise, in pixel values."""

Start = Callable[[Tensor, Tensor, int, int], Tensor]
"""Maps targets `(T, C, H, W)`, their learners' numbers, a number M and a seed to images `(T, M, C, H, W)`."""


def start_from_known(known: Tensor, of: Tensor) -> Tensor:
    """Return the images `of (M,)` among `known (T, N, C, H, W)`, which have the classes of the unknown images."""
    return known[:, of].clone()


def start_blurred(targets: Tensor, learners: Tensor, images: int, seed: int) -> Tensor:
    """Return the blurred target plus a little noise, by which the images of one class differ.

    The unknown images resemble the target: for a convolution, whose gradient constrains them less than that of a
    dense layer, this start is closer to them than noise. The noise depends on learner and seed.
    """
    # Two box filters of a third of the image: about a Gaussian with a standard deviation of a seventh of it.
    side = min(targets.shape[2:]) // 3 | 1
    blurred = targets
    for _ in range(2):
        blurred = F.avg_pool2d(blurred, side, stride=1, padding=side // 2)
    noise = [
        torch.randn((images, *targets.shape[1:]), generator=_of(seed, learner), device="cpu")
        for learner in learners.tolist()
    ]
    return (blurred[:, None] + _NOISE * torch.stack(noise).to(targets.device)).clamp(0.0, 1.0)


def start_random(images: int, input_shape: tuple[int, ...], learners: Tensor, seed: int) -> Tensor:
    """Return Gaussian noise with mean 0.5 and standard deviation 0.25, `(T, images, *input_shape)`.

    This is about a standard normal start for images normalized to mean 0 and standard deviation 1, as in DLG and
    "inverting gradients". The noise depends on a learner's number in `learners (T,)` and on the seed.
    """
    noise = [
        torch.randn((images, *input_shape), generator=_of(seed, learner), device="cpu")
        for learner in learners.tolist()
    ]
    return 0.5 + 0.25 * torch.stack(noise).to(learners.device)


def start_in_row_space(values: Tensor, vectors: Tensor, gradient: Tensor, bias: Tensor | None) -> Start:
    """Return the start inside the row spaces `vectors (T, R, pixels)` of the first layer's gradients.

    All images X of the learner lie there. The weight's `gradient` is `G = A X (T, H, pixels)` and that of the `bias`
    is `b = A 1 (T, H)` with the same factors A, so all images also lie on one hyperplane, `X u = 1`, where u is the
    least-squares solution of `G u = b`. Each image starts at the hyperplane's point nearest to zero plus a random
    direction in it, with the target's norm. Without a bias the common point is the projection of an all-white image.
    `values (T, R)` are the gradient's singular values.
    """

    def start(targets: Tensor, learners: Tensor, images: int, seed: int) -> Tensor:
        size = vectors.shape[1]
        own = torch.stack(
            [
                torch.randn((images, size), generator=_of(seed, learner), dtype=torch.float64, device="cpu")
                for learner in learners.tolist()
            ]
        ).to(learners.device)
        length = targets.flatten(1).double().norm(dim=1)[:, None]
        if bias is None:
            common = _unit(vectors.sum(dim=2)) * length * _SHARE
        else:
            projected = (gradient.double() @ vectors.mT / values[:, None] ** 2).mT @ bias.double()[:, :, None]
            normal = projected[:, :, 0]
            common = normal / (normal.square().sum(dim=1, keepdim=True) + 1e-12)
            common = common * (length / (common.norm(dim=1, keepdim=True) + 1e-12)).clamp(max=1.0)
        axis = _unit(common)[:, None]
        own = own - (own @ axis.mT) @ axis
        rest = (length.square() - common.square().sum(dim=1, keepdim=True)).clamp(min=0.0).sqrt()
        mixed = common[:, None] + _unit(own) * rest[:, None]
        drawn: Tensor = (mixed @ vectors).float().reshape(len(targets), images, *targets.shape[1:])
        return drawn

    return start


def _unit(vectors: Tensor) -> Tensor:
    length: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / (length + 1e-12)


def _of(seed: int, learner: int) -> torch.Generator:
    """Return the generator of the learner with this number, independent of the other learners attacked."""
    return generator_for(seed, "start", learner)
