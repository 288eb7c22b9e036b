"""Finding the dense first layer of a module, by following random images through it and by computing without them."""

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metaleak.clients.episode import Parameters
from metaleak.clients.models.layers import INPUT, Compute, Followed, follow
from metaleak.clients.models.model import Affine, DenseInput

_T = TypeVar("_T")

_TOLERANCE = 1e-4
"""Part of a value that float32 may lose on its way through a network."""


def dense_input_of_module(model: Compute, parameters: Parameters) -> tuple[DenseInput, tuple[int, int, int]] | None:
    """Return the dense first layer of `model` and a shape of images that it takes, or `None` where not verified.

    Verified is that every image goes, flattened and perhaps scaled and shifted pixel by pixel, into one linear layer
    and nowhere else; that this layer's weight is used for nothing else; and that images of another size are refused,
    so that none are resized.
    """
    widths = dict.fromkeys(value.shape[1] for value in parameters.values() if value.ndim == 2)
    for shape in (shape for width in widths for shape in _shapes(width)):
        found = _dense_input(model, parameters, shape)
        if found is not None:
            return found, shape
    return None


def _shapes(width: int) -> Iterator[tuple[int, int, int]]:
    """Yield image shapes of `width` values: square ones and single rows, gray and in color."""
    for channels in (1, 3):
        side = math.isqrt(width // channels)
        if width == channels * side**2:
            yield channels, side, side
        if width % channels == 0:
            yield channels, 1, width // channels


def _dense_input(model: Compute, parameters: Parameters, shape: tuple[int, int, int]) -> DenseInput | None:
    generator = torch.Generator().manual_seed(0)
    images, others = torch.rand(2, 2, *shape, generator=generator)
    followed = _tried(lambda: follow(model, parameters, images))
    weight = None if followed is None else _only_weight(followed)
    if followed is None or weight is None or followed.first_input is None:
        return None
    blank, full, first, other = (
        _first_input(model, parameters, some)
        for some in (torch.zeros_like(images), torch.ones_like(images), images, others)
    )
    if blank is None or full is None or first is None or other is None or first.shape != images.flatten(1).shape:
        return None
    found = DenseInput(weight, Affine((full - blank)[0], blank[0]))
    if torch.equal(first, images.flatten(1)) and torch.equal(other, others.flatten(1)):
        found = DenseInput(weight)
    elif not torch.allclose(found.inputs(others), other, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None
    larger = torch.rand(2, shape[0], 2 * shape[1], 2 * shape[2], generator=generator)
    if _tried(lambda: model(parameters, larger)) is not None:
        return None
    # A single image is tried, too, because attacks use single images.
    logits = _tried(lambda: model(parameters, others[:1]))
    without = _tried(lambda: without_images(model, parameters, found.inputs(others[:1]), weight, shape))
    if logits is None or without is None or not torch.allclose(logits, without, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None
    return found


def _only_weight(followed: Followed) -> str | None:
    """Return the weight of the only layer that takes the example, if there is one and it is linear."""
    layers = followed.layers()
    first, *later = layers.layers or (None,)
    if first is None or first.kind != "linear" or first.weight is None or first.takes != (INPUT,):
        return None
    elsewhere = INPUT in layers.output or any(INPUT in layer.takes for layer in later)
    return None if elsewhere or followed.uses[first.weight] > 1 else first.weight


def _first_input(model: Compute, parameters: Parameters, images: Tensor) -> Tensor | None:
    followed = _tried(lambda: follow(model, parameters, images))
    return None if followed is None else followed.first_input


def _tried(compute: Callable[[], _T]) -> _T | None:
    """Return what `compute` returns, or `None` when it raises: a module may refuse images by any exception."""
    try:
        with torch.no_grad():
            return compute()
    except Exception:  # noqa: BLE001 (a module of the user's own may raise anything)
        return None


def without_images(
    model: Compute, parameters: Parameters, inputs: Tensor, weight: str, shape: tuple[int, int, int]
) -> Tensor:
    """Return the logits `(B, ways)` for `inputs (B, n)` of the layer whose `weight (units, n)` meets the images."""
    with _Fed(parameters[weight], inputs):
        return model(parameters, inputs.new_zeros((len(inputs), *shape)))


class _Fed(TorchFunctionMode):
    """Replaces the inputs of the linear layer with this weight."""

    def __init__(self, weight: Tensor, inputs: Tensor) -> None:
        super().__init__()
        self._weight, self._inputs = weight, inputs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args) > 1 and args[1] is self._weight:
            args = (self._inputs, *args[1:])
        return func(*args, **(kwargs or {}))
