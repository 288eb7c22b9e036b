"""The data of the span test: first-layer gradients, the layer's inputs, and the noise on both."""

import math
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.at_once import for_each
from metaleak.clients.episode import Parameters
from metaleak.clients.models import DenseInput, bias_of
from metaleak.defenses import NO_NOISE, Defense, noise_of

_AT_ONCE = 16
"""The number of learners whose rows are multiplied at a time."""

_ALL = slice(None)


def with_bias_column(gradients: Parameters, first: str, learners: slice = _ALL) -> Tensor:
    """Return the first layer's gradients `(L, H, P)`, with that of the bias, if there is one, as the last column.

    The gradient of the bias is that of a weight on an input which is 1 for every image. For many `learners` the
    result is a large copy.
    """
    weight, bias = gradients[first][learners], gradients.get(bias_of(first))
    return weight if bias is None else torch.cat([weight, bias[learners, :, None]], dim=2)


def layer_inputs(first: DenseInput, images: Tensor, width: int) -> Tensor:
    """Return images as the layer's inputs `(T, width)`, with a last column of 1 if `width` includes the bias."""
    flat = first.inputs(images.double())
    return flat if flat.shape[1] == width else torch.cat([flat, flat.new_ones((len(flat), 1))], dim=1)


def second_moments(gradients: Parameters, first: str, learners: range) -> Tensor:
    """Return the second moment `(P, P)`, float64, of rows of `with_bias_column`, with equal weight per learner."""
    starts = learners[::_AT_ONCE]
    parts = [torch.empty(0)] * len(starts)

    def multiply(number: int) -> None:
        stop = min(starts[number] + _AT_ONCE, learners.stop)
        some = with_bias_column(gradients, first, slice(starts[number], stop))
        size = some.double().square().sum(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-150)
        rows = (some / size).to(some.dtype).flatten(0, 1)
        parts[number] = rows.mT @ rows

    for_each(range(len(starts)), multiply)
    moments = torch.zeros_like(parts[0], dtype=torch.float64)
    for part in parts:
        moments += part
    return moments


def image_noise(defenses: tuple[Defense, ...], asks: Literal["query", "support"]) -> float:
    """Return the standard deviation of the known noise on the attacked set's images, in pixel values; 0 without."""
    noises = [noise_of(one) for one in defenses if one.place == asks]
    return math.hypot(*(noise.deviation for noise in noises if noise is not None and not noise.relative))


def shared_noise(defenses: tuple[Defense, ...], gradient: Parameters, learners: int) -> float | None:
    """Return the standard deviation of the noise on the mean of `learners` gradients, `None` if it is not known."""
    shared = [one for one in defenses if one.place == "shared"]
    if len(shared) != 1:
        return None
    noise = noise_of(shared[0])
    if noise == NO_NOISE or noise is None:
        return None
    if not noise.relative:
        return noise.deviation / math.sqrt(learners)
    if learners > 1:
        # Relative noise scales with the norm of each learner's gradient, which cannot be seen in a mean.
        return None
    # The noise is relative to the gradient before noise was added, and increased the observed norm.
    energy = sum(float(value.double().square().sum()) for value in gradient.values())
    entries = sum(value.numel() for value in gradient.values())
    return float(noise.deviation * (energy / entries / (1 + noise.deviation**2)) ** 0.5)
