"""What an architecture gives away before it is trained: a table layer by layer, the security number, and I2F."""

from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from metaleak.attacks.layerwise.activations import activation_of
from metaleak.attacks.layerwise.chain import obstacle
from metaleak.attacks.layerwise.inversion_bound import inversion_bounds, noise_like
from metaleak.attacks.layerwise.security import MEMORY, ConvolutionShape, Rank, contributions, rank_of
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Layer, Layers, layers_of
from metaleak.clients.models.layers import Compute

Covered = Literal["exact", "at most", "no"]
"""What the ranks say of a layer's input: its constraints' number, an upper bound on it, or nothing."""

NOISE = 0.01
"""The noise for which I2F is stated, as a part of the gradient's norm."""

_DRAWS = 4


@dataclass(frozen=True)
class LayerAudit:
    """What the weight and the gradient of one layer say of its input, for one example.

    `rank` counts the independent constraints on the `unknowns` numbers of the input; `None` for a layer that is
    neither dense nor a convolution, and for one whose rank would take too much memory. `covered` says
    whether they can be had: `at most` where an activation that cannot be inverted follows, `no` where something else
    stands in the way, which `note` names. `contribution` is the term of the security number, for convolutions, where
    the ranks of all of them were computed.
    """

    name: str
    kind: str
    unknowns: int
    from_weight: int | None = None
    from_gradient: int | None = None
    rank: int | None = None
    contribution: float | None = None
    covered: Covered = "no"
    note: str = ""

    @property
    def deficit(self) -> int | None:
        """Return how many constraints are missing."""
        return None if self.rank is None else self.unknowns - self.rank


@dataclass(frozen=True)
class Audit:
    """What a network gives away, layer by layer.

    `of_convolutions` is the security number of the convolutions by themselves, 0 without any; `None` where a rank
    could not be found. `i2f` is by how much at least, to first order and root mean square a pixel, Gaussian noise of
    `NOISE` of the gradient's norm moves what an inversion finds that matches the noisy gradient of one random image,
    of two where a norm refuses one; other inversions may be moved less. `None` where it cannot be computed.
    """

    layers: tuple[LayerAudit, ...]
    of_convolutions: float | None
    i2f: float | None
    before: tuple[str, ...] = field(default=())

    @property
    def covered(self) -> Covered:
        """Return what the security number says of the network: the least of what it says of its layers."""
        kinds = {layer.covered for layer in self.layers}
        return "no" if "no" in kinds or self.before else "at most" if "at most" in kinds else "exact"

    @property
    def c(self) -> float | None:
        """Return the security number c(M) where it covers the network, an upper bound with `covered` `at most`."""
        return None if self.covered == "no" else self.of_convolutions


def audit(model: Compute, parameters: Parameters, input_shape: tuple[int, ...], seed: int = 0) -> Audit:
    """Return what `model` gives away of one example of `input_shape`, `(C, H, W)`, at `parameters`.

    Only I2F depends on the parameters' values; it is computed in float64 on a random image.
    """
    wide = {name: value.detach().double() for name, value in parameters.items()}
    # Two, since a batch norm may refuse one.
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = layers_of(model, wide, images)
    ranks = [_rank(layer, wide, seed) for layer in found.layers]
    convolutions = [
        rank for layer, rank in zip(found.layers, ranks, strict=True) if layer.kind == "conv2d" and rank is not None
    ]
    missing = any(layer.kind == "conv2d" and rank is None for layer, rank in zip(found.layers, ranks, strict=True))
    terms = iter([] if missing else contributions(convolutions))
    rows = tuple(
        _row(layer, rank, next(terms, None) if layer.kind == "conv2d" else None, found, wide)
        for layer, rank in zip(found.layers, ranks, strict=True)
    )
    known = not missing and all(rank.exact for rank in convolutions)
    number = sum(row.contribution or 0.0 for row in rows)
    return Audit(rows, number if known else None, _i2f(model, wide, images), found.before)


def _rank(layer: Layer, parameters: Parameters, seed: int) -> Rank | None:
    """Return the rank of a layer's constraints, `None` for a layer that is not covered or takes too much memory."""
    if layer.weight is None:
        return None
    weight = parameters[layer.weight]
    if layer.kind in ("linear", "matmul", "mm") and len(layer.input_shape) == 1 and weight.ndim == 2:
        unknowns = layer.input_shape[0]
        # dW is the outer product of dz and x: one unit with a gradient tells the whole input.
        return Rank(unknowns, min(layer.output_shape[0], unknowns), unknowns, unknowns)
    shape = _shape(layer, weight)
    return None if shape is None or shape.memory > MEMORY else rank_of(shape, seed)


def _shape(layer: Layer, weight: Tensor) -> ConvolutionShape | None:
    if layer.kind != "conv2d" or layer.sliding is None or len(layer.input_shape) != 3:
        return None
    filters, fan_in, *kernel = weight.shape
    channels, height, width = layer.input_shape
    return ConvolutionShape((filters, fan_in, kernel[0], kernel[1]), (channels, height, width), layer.sliding)


def _row(layer: Layer, rank: Rank | None, term: float | None, layers: Layers, parameters: Parameters) -> LayerAudit:
    unknowns = prod(layer.input_shape)
    if rank is None:
        shape = None if layer.weight is None else _shape(layer, parameters[layer.weight])
        note = f"{layer.kind} is not covered"
        if shape is not None:
            note = f"its rank was not computed, it would take {shape.memory / 2**30:.1f} GiB"
        return LayerAudit(layer.name, layer.kind, unknowns, note=note)
    covered, note = _covered(layer, layers)
    if not rank.exact:
        covered, note = "no", "its rank could only be bounded from below"
    return LayerAudit(
        layer.name, layer.kind, unknowns, rank.from_weight, rank.from_gradient, rank.rank, term, covered, note
    )


def _covered(layer: Layer, layers: Layers) -> tuple[Covered, str]:
    if len(layer.takes) > 1:
        return "no", f"takes a sum or a list of {' and '.join(layer.takes)}, which tells none of them"
    if sum(layer.name in other.takes for other in layers.layers) + (layer.name in layers.output) > 1:
        return "no", "its output is used in several places, as by a skip connection or a norm"
    if (found := obstacle(layer)) is not None:
        return "no", f"followed by {found}, which cannot be inverted here"
    if layer.activation and activation_of(layer.activation, layer.constants).inverse is None:
        if layer.kind == "conv2d":
            return "at most", f"units that {layer.activation} switches off give no constraint"
        return "exact", ""
    return "exact", ""


def _i2f(model: Compute, parameters: Parameters, images: Tensor) -> float | None:
    def loss(parameters: Parameters, images: Tensor) -> Tensor:
        logits = model(parameters, images)
        if logits.shape[1] == 1:
            return F.softplus(-logits).mean()
        return F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64))

    def shares(images: Tensor) -> Parameters:
        gradient: Parameters = grad(loss)(parameters, images)
        return gradient

    for count in range(1, len(images) + 1):
        some = images[:count]
        try:
            gradient = shares(some)
            bounds = inversion_bounds(shares, some, [noise_like(gradient, NOISE, seed) for seed in range(_DRAWS)])
        except (NotImplementedError, RuntimeError, ValueError):
            # A function without a forward derivative, or a norm that refuses a single example.
            continue
        mean = sum(bounds) / len(bounds) / sqrt(some.numel())
        return mean if mean < float("inf") else None
    return None
