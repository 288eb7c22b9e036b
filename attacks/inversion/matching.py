"""The distance between a dummy meta-gradient and the observed one, and the total variation of dummy images."""

from typing import Literal

import torch
from torch import Tensor

from metaleak.clients.episode import Parameters

Loss = Literal["cosine", "squared"]
Layers = Literal["joint", "each"]

_TINY = 1e-12


def matching_loss(
    made: Parameters, observed: Parameters, loss: Loss, layers: Layers, squares: Parameters | None = None
) -> Tensor:
    """Return the distance of two gradients with the same names and shapes, a scalar.

    `cosine`: 1 - cosine, in [0, 2] (Geiping et al. 2020). `squared`: squared distance divided by the observed squared
    norm, 0 or more (DLG, Zhu et al. 2019, made scale-invariant). `joint` takes all parameters as one vector; `each`
    is the mean of the loss over parameters, so that a small layer has the weight of a large one. `squares` are the
    observed tensors' squared norms, scalars by name; for `cosine`, `observed` may then be only the part of them that
    `made` could match.
    """
    sizes = {name: value.square().sum() for name, value in observed.items()} if squares is None else squares
    parts = [tuple(observed)] if layers == "joint" else [(name,) for name in observed]
    distance = _cosine if loss == "cosine" else _squared
    return torch.stack([distance(part, made, observed, sizes) for part in parts]).mean()


def total_variation(images: Tensor) -> Tensor:
    """Return the anisotropic total variation of `images (M, C, H, W)`, a scalar, in pixel values.

    It is the mean absolute difference of horizontal neighbors plus that of vertical ones (Rudin et al. 1992; in this
    form in the code of Geiping et al. 2020). Images must be at least two pixels wide and high.
    """
    across = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def _cosine(names: tuple[str, ...], made: Parameters, observed: Parameters, squares: Parameters) -> Tensor:
    products = torch.stack([(made[name] * observed[name]).sum() for name in names]).sum()
    lengths = torch.stack([made[name].square().sum() for name in names]).sum()
    # The tiny term is under the root, since a norm has no derivative at zero.
    norms = (lengths + _TINY).sqrt() * (torch.stack([squares[name] for name in names]).sum() + _TINY).sqrt()
    return 1.0 - products / norms


def _squared(names: tuple[str, ...], made: Parameters, observed: Parameters, squares: Parameters) -> Tensor:
    distances = torch.stack([(made[name] - observed[name]).square().sum() for name in names]).sum()
    return distances / (torch.stack([squares[name] for name in names]).sum() + _TINY)
