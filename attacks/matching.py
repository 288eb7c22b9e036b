"""How far a made-up meta-gradient lies from the observed one, and how unlike a picture its images are."""

from typing import Literal

import torch
from torch import Tensor

from metaleak.clients.episode import Parameters

Loss = Literal["cosine", "squared"]
Layers = Literal["joint", "each"]

_TINY = 1e-12


def matching_loss(made: Parameters, observed: Parameters, loss: Loss, layers: Layers) -> Tensor:
    """Return the distance of two gradients of the same names and shapes, a scalar.

    `cosine`: 1 - cosine, in [0, 2] (Geiping et al. 2020). `squared`: squared distance over the observed squared
    norm, 0 or more (DLG, Zhu et al. 2019, made free of scale). `joint` takes all parameters as one vector; `each`
    is the mean over the parameters' own losses, so that a small layer counts as much as a large one.
    """
    made_parts = [made[name].flatten() for name in observed]
    observed_parts = [value.flatten() for value in observed.values()]
    if layers == "joint":
        made_parts, observed_parts = [torch.cat(made_parts)], [torch.cat(observed_parts)]
    distance = _cosine if loss == "cosine" else _squared
    losses = [distance(*parts) for parts in zip(made_parts, observed_parts, strict=True)]
    return torch.stack(losses).mean()


def total_variation(images: Tensor) -> Tensor:
    """Return the anisotropic total variation of `images (M, C, H, W)`, a scalar, in pixel values.

    The mean absolute difference of horizontal neighbours plus that of vertical ones (Rudin et al. 1992; in this form
    in the code of Geiping et al. 2020). Images are two pixels wide and high at least.
    """
    across = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def _cosine(made: Tensor, observed: Tensor) -> Tensor:
    # The tiny term stands under the root: a norm has no derivative at zero.
    norms = (made.dot(made) + _TINY).sqrt() * (observed.dot(observed) + _TINY).sqrt()
    return 1.0 - made.dot(observed) / norms


def _squared(made: Tensor, observed: Tensor) -> Tensor:
    difference = made - observed
    return difference.dot(difference) / (observed.dot(observed) + _TINY)
