"""What an architecture gives away: ranks of each layer's constraints, the security number c(M), and I2F."""

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
"""Whether a layer's rank is the number of its constraints, only an upper bound on it, or does not apply."""

NOISE = 0.01
"""The noise for which I2F is stated, relative to the gradient's norm."""

_DRAWS = 4


@dataclass(frozen=True)
class LayerAudit:
    """How far the weight and the gradient of one layer determine its input, for one example.

    `rank` is the number of independent constraints on the `unknowns` entries of the input; it is `None` for a layer
    that is neither dense nor a convolution, or whose rank would take too much memory. `from_weight` and
    `from_gradient` are the ranks of the two kinds of constraints alone. `covered` says whether an attack has all
    these constraints: `at most` if an activation without an inverse follows, `no` if something else prevents it,
    which `note` names. `contribution` is a convolution's term of the security number, if the ranks of all
    convolutions were computed.
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
        """The number of missing constraints."""
        return None if self.rank is None else self.unknowns - self.rank


@dataclass(frozen=True)
class Audit:
    """What a network gives away, layer by layer.

    `c_of_convolutions` is the security number of the convolutions alone, 0 without any, `None` if a rank could not be
    computed. `i2f` is a lower bound, to first order, on how far Gaussian noise of `NOISE` times the gradient's norm
    moves the result of an inversion that matches the noisy gradient: root mean square per pixel, for one random
    image, or two where a normalization layer needs two. It does not bound other inversions, and is `None` if it
    cannot be computed. `before` names operations on the example before the first layer.
    """

    layers: tuple[LayerAudit, ...]
    c_of_convolutions: float | None
    i2f: float | None
    before: tuple[str, ...] = field(default=())

    @property
    def covered(self) -> Covered:
        """Whether the security number applies to the network: the weakest statement among its layers."""
        kinds = {layer.covered for layer in self.layers}
        return "no" if "no" in kinds or self.before else "at most" if "at most" in kinds else "exact"

    @property
    def c(self) -> float | None:
        """The security number c(M), an upper bound if `covered` is `at most`; `None` if it does not apply."""
        return None if self.covered == "no" else self.c_of_convolutions


def audit(model: Compute, parameters: Parameters, input_shape: tuple[int, ...], seed: int = 0) -> Audit:
    """Return how far gradients of `model` determine one example of `input_shape`, `(C, H, W)`.

    Only I2F depends on the values of `parameters`; it is computed in float64 on a random image.
    """
    wide = {name: value.detach().double() for name, value in parameters.items()}
    # Two images, since a batch norm may not accept one.
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
    """Return the rank of a layer's constraints, `None` if it does not apply or would take too much memory."""
    if layer.weight is None:
        return None
    weight = parameters[layer.weight]
    if layer.kind in ("linear", "matmul", "mm") and len(layer.input_shape) == 1 and weight.ndim == 2:
        unknowns = layer.input_shape[0]
        # dW is the outer product of dz and x: one unit with a gradient determines the whole input.
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
            note = f"its rank was not computed: that would take {shape.memory / 2**30:.1f} GiB"
        return LayerAudit(layer.name, layer.kind, unknowns, note=note)
    covered, note = _covered(layer, layers)
    if not rank.exact:
        covered, note = "no", "its rank could only be bounded from below"
    return LayerAudit(
        layer.name, layer.kind, unknowns, rank.from_weight, rank.from_gradient, rank.rank, term, covered, note
    )


def _covered(layer: Layer, layers: Layers) -> tuple[Covered, str]:
    if len(layer.takes) > 1:
        return "no", f"takes a sum or a list of {' and '.join(layer.takes)}, which does not determine either of them"
    if sum(layer.name in other.takes for other in layers.layers) + (layer.name in layers.output) > 1:
        return "no", "its output is used in several places, as by a skip connection or a norm"
    if (found := obstacle(layer)) is not None:
        return "no", f"followed by {found}, which cannot be inverted"
    if layer.activation and activation_of(layer.activation, layer.constants).inverse is None:
        if layer.kind == "conv2d":
            return "at most", f"units that {layer.activation} sets to zero give no constraint"
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
            # A function without a forward derivative, or a norm that does not accept a single example.
            continue
        mean = sum(bounds) / len(bounds) / sqrt(some.numel())
        return mean if mean < float("inf") else None
    return None
