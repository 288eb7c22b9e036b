"""One image of the user's own, inverted layer by layer from its gradient at a network's parameters."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from metaleak.attacks.layerwise.audit import Audit
from metaleak.attacks.layerwise.chain import Chain, chain_of
from metaleak.attacks.layerwise.hybrid import reconstruct_hybrid
from metaleak.attacks.layerwise.last_layer import Loss
from metaleak.attacks.layerwise.rgap import Reconstruction, reconstruct
from metaleak.clients.datasets.decoding import decode
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model
from metaleak.deploy.report.layer_page import Inversion, LayerView


def image_of(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Return the image in a file as float64 `(C, H, W)` in [0, 1], scaled to `shape`: its central square.

    Raises `ValueError` in one line for what is no image, and for shapes that are not square or have other channels
    than 1 or 3.
    """
    channels, height, width = shape
    if channels not in (1, 3) or height != width:
        raise ValueError(f"an image has 1 or 3 channels and is made square, the input is {channels}x{height}x{width}")
    try:
        with open(path, "rb") as file:
            pixels = decode(file, str(path), height, channels == 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return torch.from_numpy(pixels.copy()).double() / 255


def inversions(model: Model, parameters: Parameters, image: Tensor, label: int, found: Audit) -> Sequence[Inversion]:
    """Return what R-GAP makes of the gradient of one `image (C, H, W)`, and the hybrid method where layers lack rank.

    The gradient is that of the cross-entropy of `label`, of one logit that of the binary logistic loss of the labels
    0 and 1, rounded to float32. Raises `ValueError` for a label that there is not.
    """
    wide = {name: value.detach().double() for name, value in parameters.items()}
    with torch.no_grad():
        logits = model(wide, image[None]).shape[1]
    if label >= max(logits, 2):
        raise ValueError(f"the label must be below {max(logits, 2)}, got {label}")

    def loss(parameters: Parameters) -> Tensor:
        made = model(parameters, image[None])
        if logits == 1:
            return F.softplus(-float(2 * label - 1) * made).sum()
        return F.cross_entropy(made, torch.tensor([label]))

    gradient = {name: value.float().double() for name, value in grad(loss)(wide).items()}
    methods: list[tuple[str, Callable[[Chain, Parameters, Loss], Reconstruction]]] = [("R-GAP", reconstruct)]
    if any(layer.deficit for layer in found.layers if layer.covered == "exact"):
        methods.append(("Hybrid", reconstruct_hybrid))
    made = []
    for name, method in methods:
        try:
            chain = chain_of(model, wide, tuple(image.shape))
            rebuilt = method(chain, gradient, "logistic" if logits == 1 else "cross_entropy")
        except ValueError as error:
            made.append(Inversion(name, refused=str(error)))
            continue
        made.append(_views(name, rebuilt, chain, image, found))
    return made


def _views(name: str, rebuilt: Reconstruction, chain: Chain, image: Tensor, found: Audit) -> Inversion:
    """Return the layers' inputs, from the last to the first, beside those that they truly had."""
    known = {layer.name: f"{layer.rank} of {layer.unknowns}" for layer in found.layers if layer.covered == "exact"}
    layers = []
    for layer, truth in zip(rebuilt.layers, chain.inputs(image), strict=False):
        true, made = (one.detach().reshape(truth.shape).float().numpy() for one in (truth, layer.x))
        layers.append(LayerView(layer.name, true, made, layer.residual, known.get(layer.name, "")))
    error = float((rebuilt.example.clamp(0, 1) - image).square().mean())
    return Inversion(name, tuple(reversed(layers)), -10 * math.log10(max(error, 1e-30)))
