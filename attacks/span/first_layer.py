"""What the span test uses: a learner's first-layer gradient, the layer's inputs, and the noise on both."""

import math
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.at_once import for_each
from metaleak.clients.episode import Parameters
from metaleak.clients.models import DenseInput, bias_of
from metaleak.defenses import NO_NOISE, Defense, noise_of

_AT_ONCE = 16
"""Learners whose rows are multiplied at once."""

_ALL = slice(None)


def with_bias_column(gradients: Parameters, first: str, learners: slice = _ALL) -> Tensor:
    """Return the first layer's gradients `(L, H, P)`, with the bias's as one more column where there is a bias.

    The bias's gradient is the sum of the coefficients: that of an input which is 1 for every image. For many
    `learners` the result is a large copy.
    """
    weight, bias = gradients[first][learners], gradients.get(bias_of(first))
    return weight if bias is None else torch.cat([weight, bias[learners, :, None]], dim=2)


def layer_inputs(first: DenseInput, images: Tensor, width: int) -> Tensor:
    """Return images as the layer's inputs `(T, width)`, with the bias's 1 where the width has room for it."""
    flat = first.inputs(images.double())
    return flat if flat.shape[1] == width else torch.cat([flat, flat.new_ones((len(flat), 1))], dim=1)


def second_moments(gradients: Parameters, first: str, learners: range) -> Tensor:
    """Return the second moment `(P, P)`, float64, of the rows of `with_bias_column`, each learner counting alike."""
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
    """Return the standard deviation of the known noise on the images asked about, in pixel values; 0 without any."""
    noises = [noise_of(one) for one in defenses if one.place == asks]
    return math.hypot(*(noise.deviation for noise in noises if noise is not None and not noise.relative))


def shared_noise(defenses: tuple[Defense, ...], gradient: Parameters, learners: int) -> float | None:
    """Return the deviation of the noise on the mean of `learners` gradients, `None` where it is not known."""
    shared = [one for one in defenses if one.place == "shared"]
    if len(shared) != 1:
        return None
    noise = noise_of(shared[0])
    if noise == NO_NOISE or noise is None:
        return None
    if not noise.relative:
        return noise.deviation / math.sqrt(learners)
    if learners > 1:
        # Relative noise scales with each single gradient's norm, which a mean does not show.
        return None
    # The scale is in units of the gradient before the noise, which added its own part of the energy.
    energy = sum(float(value.double().square().sum()) for value in gradient.values())
    entries = sum(value.numel() for value in gradient.values())
    return float(noise.deviation * (energy / entries / (1 + noise.deviation**2)) ** 0.5)
