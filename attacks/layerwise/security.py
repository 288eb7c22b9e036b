"""The security number c(M) of an architecture: the rank deficits of its convolutions (Chen and Campbell 2021).

The input x (n entries) of a convolution satisfies `U x = [z; vec dW]` with `U = [W; K(dz)]`. If the rank of U is
below n, the constraints do not determine the input. For generic weights and loss gradients the rank depends only on
the convolution's shape: neither images nor trained weights are needed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from metaleak.attacks.layerwise.least_squares import Constraints, solve
from metaleak.attacks.layerwise.operators import Convolution, LayerOperator, dense_matrix
from metaleak.clients.models import Sliding

_TOLERANCE = 1e-9
"""Singular values below this, relative to the largest, count as zero."""

_SOLVED = 1e-6
"""The largest relative residual of a solvable random system; unsolvable ones have a residual of about 1."""

_ITERATIONS = 3000

_SPREAD = 0.3
"""The norm of a filter's random part, beside the weight of 1 on the input that it selects."""

_SMALL = 1000
"""Up to this many unknowns, a rank that is not found otherwise is computed from the matrix."""


MEMORY = 2 * 2**30
"""The largest number of bytes for the matrices of one rank."""


@dataclass(frozen=True)
class ConvolutionShape:
    """A convolution's shape: `weight (m, c / groups, k, l)`, `input_shape (c, h, w)`, stride, padding and so on."""

    weight: tuple[int, int, int, int]
    input_shape: tuple[int, int, int]
    sliding: Sliding = field(default_factory=Sliding)

    @property
    def memory(self) -> int:
        """The size in bytes of the largest matrices in `rank_of`."""
        (filters, channels, *kernel), (_, height, width), sliding = self.weight, self.input_shape, self.sliding
        filters //= sliding.groups
        place = height * width
        outputs = filters * (height + 2 * sliding.padding[0]) * (width + 2 * sliding.padding[1])
        # The convolution with dz exceeds the kernel by less than a stride.
        reached = filters * math.prod(side + stride for side, stride in zip(kernel, sliding.stride, strict=True))
        numbers = min(filters * math.prod(kernel), place) * (place + reached) + outputs
        if channels * place <= _SMALL:
            numbers = max(numbers, channels * place * (outputs + filters * channels * math.prod(kernel)))
        return 8 * numbers

    def drawn(self, generator: torch.Generator) -> Convolution:
        """Return the convolution with random float64 weights, drawn around filters that select single inputs.

        Almost all weights give the same, largest rank, so these are chosen to be well conditioned.
        """
        filters, channels, *kernel = self.weight
        weight = torch.randn(self.weight, generator=generator, dtype=torch.float64)
        weight *= _SPREAD / math.sqrt(math.prod(self.weight[1:]))
        for place in range(filters):
            phases = self.sliding.stride[0] * self.sliding.stride[1]
            turn, phase = divmod(place // channels, phases)
            row = self.sliding.padding[0] + phase // self.sliding.stride[1]
            column = self.sliding.padding[1] + phase % self.sliding.stride[1]
            if turn % 2:
                row, column = -1 - row, -1 - column
            weight[place, place % channels, row % kernel[0], column % kernel[1]] += 1.0
        return Convolution(weight, self.input_shape, self.sliding)


@dataclass(frozen=True)
class Rank:
    """The number of `unknowns` of a convolution's input, and the rank of the constraints on them.

    `from_weight` and `from_gradient` are the ranks of the two blocks alone, `rank` that of both together. `exact` is
    false if `rank` is only a lower bound, that of the gradient's block.
    """

    unknowns: int
    from_weight: int
    from_gradient: int
    rank: int
    exact: bool = True

    @property
    def deficit(self) -> int:
        """The number of missing independent constraints, 0 or more."""
        return self.unknowns - self.rank


def rank_of(shape: ConvolutionShape, seed: int = 0) -> Rank:
    """Return the rank of a convolution's constraints, for generic weights and loss gradients.

    With m filters of u x v outputs and n inputs it is `min(n, m u v + rank K - m min(m, u v))`. The gradient's block
    K has the rank of c copies of one input channel's block. The last term is the number of independent identities
    `<W_f, dW_g> = <z_f, dz_g>`, which both blocks imply; that there are no others is observed, not proven. The
    formula holds if W has full row rank, which is tested by solving `W x = r` for a random r; `rank = n` is tested by
    recovering a random x. Inputs that no kernel position touches count as missing. A convolution with groups counts
    as that many smaller ones.

    Raises `ValueError` for a shape whose matrices take more than `MEMORY`.
    """
    if shape.memory > MEMORY:
        raise ValueError(
            f"the rank of a convolution of weight {shape.weight} on {shape.input_shape} would take "
            f"{shape.memory / 2**30:.1f} GiB of memory: at most {MEMORY / 2**30:.0f} GiB are allowed"
        )
    groups = shape.sliding.groups
    if groups > 1:
        filters, channels = shape.weight[0] // groups, shape.input_shape[0] // groups
        one = rank_of(
            ConvolutionShape(
                (filters, *shape.weight[1:]), (channels, *shape.input_shape[1:]), replace(shape.sliding, groups=1)
            ),
            seed,
        )
        return Rank(
            groups * one.unknowns,
            groups * one.from_weight,
            groups * one.from_gradient,
            groups * one.rank,
            one.exact,
        )
    generator = torch.Generator().manual_seed(seed)
    operator = shape.drawn(generator)
    dz = torch.randn(operator.output_shape, generator=generator, dtype=torch.float64)
    channels, filters = shape.input_shape[0], shape.weight[0]
    unknowns, outputs = math.prod(shape.input_shape), dz.numel()
    from_gradient = channels * _rank_of_channel(shape, dz)
    touched = channels * _touched(operator, dz)
    alike = filters * min(filters, dz[0].numel())
    both = min(touched, outputs + from_gradient - alike)
    known = Rank(unknowns, min(outputs, touched), from_gradient, touched)
    if from_gradient == touched:
        return known
    if both == touched or outputs > touched:
        found = _recovers(operator, dz, generator)
    else:
        found = _full_row_rank(operator, dz, generator)
        known = replace(known, rank=both)
    if found:
        return known
    if unknowns <= _SMALL:
        return replace(known, rank=_rank(dense_matrix(operator, dz)))
    return replace(known, rank=from_gradient, exact=False)


def deficit_of(operator: LayerOperator) -> int:
    """Return the number of missing constraints on a layer's input, for generic loss gradients.

    Raises `ValueError` as `rank_of` does.
    """
    if operator.sliding is None:
        return 0
    filters, fan_in, *kernel = operator.weight.shape
    channels, height, width = operator.input_shape
    shape = (filters, fan_in, kernel[0], kernel[1]), (channels, height, width)
    return rank_of(ConvolutionShape(*shape, operator.sliding)).deficit


def security(ranks: Sequence[Rank]) -> float:
    """Return `c(M) = sum_i ((d - i + 1) / d) (rank U_i - n_i)` over a network's d convolutions, in order.

    0 is the least safe: every layer's input is determined; more negative is safer (Chen and Campbell 2021, eq. 11).
    """
    return sum(contributions(ranks))


def contributions(ranks: Sequence[Rank]) -> list[float]:
    """Return the terms of `security`, one per convolution, each 0 or less."""
    depth = len(ranks)
    return [(depth - place) / depth * (rank.rank - rank.unknowns) for place, rank in enumerate(ranks)]


def _rank_of_channel(shape: ConvolutionShape, dz: Tensor) -> int:
    """Return the rank of the gradient's constraints on one input channel, a matrix (m k l, h w).

    Its product with random columns, as many as its rank can be, has the same rank; each product is the gradient for a
    random channel.
    """
    (filters, _, *kernel), (_, height, width) = shape.weight, shape.input_shape
    count = min(filters * kernel[0] * kernel[1], height * width)
    sliding = shape.sliding
    if count == height * width:
        channel = torch.eye(count, dtype=torch.float64)
    else:
        channel = torch.randn(count, height * width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = F.conv2d(
        channel.reshape(count, 1, height, width),
        dz[:, None],
        stride=sliding.dilation,
        padding=sliding.padding,
        dilation=sliding.stride,
    )[..., : kernel[0], : kernel[1]]
    return _rank(rows.reshape(count, -1))


def _rank(matrix: Tensor) -> int:
    values = torch.linalg.svdvals(matrix)
    return int((values > _TOLERANCE * values[0]).sum())


def _touched(operator: Convolution, dz: Tensor) -> int:
    """Return how many pixels of a channel at least one kernel position touches."""
    ones = replace(operator, weight=torch.ones_like(operator.weight))
    return int((ones.backward(torch.ones_like(dz))[0] > 0.5).sum())


def _full_row_rank(operator: Convolution, dz: Tensor, generator: torch.Generator) -> bool:
    """Return whether a random output is the output of some input."""
    wanted = torch.randn(dz.shape, generator=generator, dtype=torch.float64)
    no_gradient = torch.zeros_like(operator.weight)
    # With dz = 0 the gradient gives no constraints.
    found = solve(Constraints(operator, torch.zeros_like(dz), no_gradient, wanted), _ITERATIONS, 1e-10)
    return found.residual < _SOLVED


def _recovers(operator: Convolution, dz: Tensor, generator: torch.Generator) -> bool:
    """Return whether its constraints determine a random input, apart from untouched pixels.

    One missing constraint of n changes the solution by about 1 / sqrt(n), relative to its norm.
    """
    x = torch.randn(operator.input_shape, generator=generator, dtype=torch.float64)
    ones = replace(operator, weight=torch.ones_like(operator.weight))
    x = x * (ones.backward(torch.ones_like(dz)) > 0.5)
    found = solve(Constraints(operator, dz, operator.weight_gradient(x, dz), operator.forward(x)), _ITERATIONS, 1e-10)
    return bool((found.x - x).norm() < 0.1 / math.sqrt(x.numel()) * x.norm())
