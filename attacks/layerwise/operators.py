"""The linear maps of a layer as functions in place of matrices: its weight, and the constraints from its gradient."""

from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from metaleak.clients.models import Layer, Sliding


class LayerOperator(Protocol):
    """The linear part of one layer, for one example: `z = W x`, and the weight's gradient `K(dz) x`.

    Both maps, `forward` and `weight_gradient`, are linear in the layer's input `x`, given the weight and the loss
    gradient `dz` at the layer's output (Zhu and Blaschko 2021, section 3.2); `backward` and `weight_gradient_adjoint`
    are their adjoints.
    """

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of `x`."""
        ...

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of `z` and `dz`."""
        ...

    @property
    def weight(self) -> Tensor:
        """The weight."""
        ...

    @property
    def sliding(self) -> Sliding | None:
        """How the kernel of a convolution moves; `None` where the weight's gradient is an outer product `dz x^T`.

        Of an outer product one unit with a gradient determines the whole input; a convolution may need more.
        """
        ...

    def forward(self, x: Tensor) -> Tensor:
        """Return `W x`."""
        ...

    def backward(self, dz: Tensor) -> Tensor:
        """Return `W^T dz`, the loss gradient at the layer's input."""
        ...

    def weight_gradient(self, x: Tensor, dz: Tensor) -> Tensor:
        """Return `K(dz) x`, shaped like the weight."""
        ...

    def weight_gradient_adjoint(self, gradient: Tensor, dz: Tensor) -> Tensor:
        """Return `K(dz)^T gradient`, shaped like `x`."""
        ...


@dataclass(frozen=True)
class Dense:
    """A fully connected layer of weight `(m, n)`, whose gradient is the outer product `dz x^T`."""

    weight: Tensor

    @property
    def sliding(self) -> None:
        """`None`: there is no kernel."""
        return None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape `(n,)`."""
        return (self.weight.shape[1],)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape `(m,)`."""
        return (self.weight.shape[0],)

    def forward(self, x: Tensor) -> Tensor:
        """Return `W x (m,)` of `x (n,)`."""
        return self.weight @ x

    def backward(self, dz: Tensor) -> Tensor:
        """Return `W^T dz (n,)` of `dz (m,)`."""
        return self.weight.mT @ dz

    def weight_gradient(self, x: Tensor, dz: Tensor) -> Tensor:
        """Return `dz x^T (m, n)`."""
        return torch.outer(dz, x)

    def weight_gradient_adjoint(self, gradient: Tensor, dz: Tensor) -> Tensor:
        """Return `gradient^T dz (n,)`."""
        return gradient.mT @ dz


@dataclass(frozen=True)
class Convolution:
    """A two-dimensional convolution of weight `(m, c / groups, k, l)` on inputs `(c, h, w)`, padded with zeros."""

    weight: Tensor
    input_shape: tuple[int, int, int]
    sliding: Sliding = field(default_factory=Sliding)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape `(m, u, v)`."""
        return (self.weight.shape[0], *self.output_sides)

    @property
    def output_sides(self) -> tuple[int, int]:
        """The height and width of the output; raises `ValueError` if the kernel does not fit into the input."""
        sides = []
        of = zip(
            self.input_shape[1:],
            self.weight.shape[2:],
            self.sliding.stride,
            self.sliding.padding,
            self.sliding.dilation,
            strict=True,
        )
        for side, kernel, stride, padding, dilation in of:
            sides.append((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
        if min(sides) < 1:
            raise ValueError(
                f"a kernel {tuple(self.weight.shape[2:])} does not fit into an input {tuple(self.input_shape)}"
            )
        return sides[0], sides[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution `(m, u, v)` of `x (c, h, w)`, without its bias."""
        return F.conv2d(x[None], self.weight, None, *self._arguments)[0]

    def backward(self, dz: Tensor) -> Tensor:
        """Return the transposed convolution `(c, h, w)` of `dz (m, u, v)`."""
        return self._transposed(self.weight, dz)

    def weight_gradient(self, x: Tensor, dz: Tensor) -> Tensor:
        """Return the weight's gradient: for each filter the correlation of `x (c, h, w)` with `dz (m, u, v)`."""
        shape = list(self.weight.shape)
        gradient: Tensor = conv2d_weight(x[None], shape, dz[None], *self._arguments)  # type: ignore[no-untyped-call]
        return gradient

    def weight_gradient_adjoint(self, gradient: Tensor, dz: Tensor) -> Tensor:
        """Return the transposed convolution `(c, h, w)` of `dz` by the kernel `gradient`.

        This follows from `<gradient, K(dz) x> = <dz, conv(x, gradient)>`.
        """
        return self._transposed(gradient, dz)

    def _transposed(self, kernel: Tensor, dz: Tensor) -> Tensor:
        shape = (1, *self.input_shape)
        made: Tensor = conv2d_input(shape, kernel, dz[None], *self._arguments)  # type: ignore[no-untyped-call]
        return made[0]

    @property
    def _arguments(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return self.sliding.stride, self.sliding.padding, self.sliding.dilation, self.sliding.groups


def operator_of(layer: Layer, weight: Tensor) -> Dense | Convolution:
    """Return the linear part of `layer` with this weight.

    Raises `ValueError`, in one line that names the layer, for a layer that is neither a linear map of a vector nor a
    two-dimensional convolution.
    """
    if layer.kind in ("linear", "matmul", "mm") and len(layer.input_shape) == 1:
        if weight.ndim != 2 or weight.shape != (*layer.output_shape, *layer.input_shape):
            raise ValueError(
                f"layer {layer.name} has a weight {tuple(weight.shape)}, not "
                f"{(*layer.output_shape, *layer.input_shape)}: it is not applied as a linear layer"
            )
        return Dense(weight)
    if layer.kind == "conv2d":
        if layer.sliding is None:
            raise ValueError(f"layer {layer.name}: padding must be given as two numbers, not by name")
        channels, height, width = layer.input_shape
        return Convolution(weight, (channels, height, width), layer.sliding)
    raise ValueError(
        f"layer {layer.name} is a {layer.kind} on {len(layer.input_shape)} axes: "
        "it must be a linear layer on vectors or a conv2d"
    )


def dense_matrix(operator: LayerOperator, dz: Tensor) -> Tensor:
    """Return `[W; K(dz)]` as a matrix `(outputs + weights, n)`, column by column; for tests and small layers."""
    columns = []
    for index in range(prod(operator.input_shape)):
        unit = torch.zeros(prod(operator.input_shape), dtype=operator.weight.dtype)
        unit[index] = 1.0
        x = unit.reshape(operator.input_shape)
        columns.append(torch.cat([operator.forward(x).flatten(), operator.weight_gradient(x, dz).flatten()]))
    return torch.stack(columns, dim=1)
