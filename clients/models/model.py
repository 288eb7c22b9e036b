"""The protocol of a model, which initializes its parameters and computes logits from them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from metaleak.clients.episode import Parameters

Activation = Literal["relu", "leaky_relu", "elu", "softplus", "sigmoid", "tanh"]

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@runtime_checkable
class Model(Protocol):
    """A classifier as a pure function of its parameters.

    A model is also its configuration: a frozen pydantic model whose fields are settings in the experiment file.
    It may name its classifier (`NamesHead`), which head-only rules need, and its dense first layer (`LinearInput`).
    """

    def initialize(self, input_shape: tuple[int, ...], ways: int, generator: torch.Generator) -> Parameters:
        """Return fresh float32 parameters for inputs of this shape, `(C, H, W)` of images, and `ways` classes."""
        ...

    def __call__(self, parameters: Parameters, inputs: Tensor, /) -> Tensor:
        """Return logits `(B, ways)` for `inputs (B, *input_shape)`: images as floats, tokens as int64."""
        ...


@runtime_checkable
class NamesHead(Protocol):
    """A model that names the parameters of its classifier."""

    @property
    def head(self) -> tuple[str, ...]:
        """Return the names of the parameters that compute logits from features."""
        ...


def head_of(model: Model) -> tuple[str, ...]:
    """Return the names of the classifier's parameters; raises `ValueError` when the model does not name them."""
    if not isinstance(model, NamesHead):
        raise ValueError(
            f"{type(model).__name__} does not name the parameters of its classifier in a property `head`"
        )
    return model.head


@runtime_checkable
class Decoupled(Protocol):
    """A model whose logits depend on the whole batch, as with batch norm, and can be made independent of it."""

    def decoupled(self, parameters: Parameters, reference: Tensor) -> Model:
        """Return the model with the batch's statistics fixed to those of the images `reference` at `parameters`.

        In the returned model each image's logits depend on that image only.
        """
        ...


@runtime_checkable
class LinearInput(Model, Protocol):
    """A model that uses an image only in the product of one weight with its flattened, unchanged pixels."""

    @property
    def input_weight(self) -> str:
        """Return the name of that weight, a parameter `(units, pixels)`.

        The model must also compute with a weight `(units, n)` and images `(B, n)`, and in float64. If that layer has
        a bias, `(units,)`, its name is that of the weight with `bias` in place of `weight` at the end; no other
        parameter may have this name.
        """
        ...


@runtime_checkable
class ElementwiseFirst(LinearInput, Protocol):
    """A `LinearInput` model that applies one function to every output of its first layer by itself."""

    def first_activation(self, values: Tensor) -> Tensor:
        """Return that function of `values`, any shape, differentiable."""
        ...


@dataclass(frozen=True)
class Affine:
    """A fixed scale and shift of every pixel: `gain` and `offset (pixels,)`."""

    gain: Tensor
    offset: Tensor

    def __call__(self, flat: Tensor) -> Tensor:
        """Return `flat (..., pixels)` scaled and shifted."""
        return flat * self.gain.to(flat) + self.offset.to(flat)


@dataclass(frozen=True)
class DenseInput:
    """A dense first layer: its `weight`, a parameter `(units, pixels)`, and what is applied to images before it."""

    weight: str
    affine: Affine | None = None

    def inputs(self, images: Tensor) -> Tensor:
        """Return the layer's inputs `(B, pixels)` for `images (B, C, H, W)`."""
        flat = images.flatten(1)
        return flat if self.affine is None else self.affine(flat)


@runtime_checkable
class FindsDenseInput(Protocol):
    """A model that finds out whether its first layer is dense.

    If so, it must also compute with a weight `(units, n)` of that layer and its inputs `(B, n)` in place of images.
    """

    @property
    def dense_input(self) -> DenseInput | None:
        """Return its dense first layer, or `None` if it has none."""
        ...


def dense_input_of(model: Model) -> DenseInput | None:
    """Return the model's dense first layer, or `None` for a model that declares none.

    A declaration is not inherited, since a derived class may compute something else.
    """
    # The protocols are asked last: that takes 10 microseconds.
    if "dense_input" in vars(type(model)) and isinstance(model, FindsDenseInput):
        return model.dense_input
    if "input_weight" in vars(type(model)) and isinstance(model, LinearInput):
        return DenseInput(model.input_weight)
    return None


def input_weight_of(model: Model) -> str | None:
    """Return the weight of the only layer that takes the pixels, unchanged, or `None` if there is no such layer."""
    dense = dense_input_of(model)
    return None if dense is None or dense.affine is not None else dense.weight


def bias_of(weight: str) -> str:
    """Return the name of the bias that belongs to the weight of this name: `layer1.bias` to `layer1.weight`."""
    return weight.removesuffix("weight") + "bias"


def image_sides(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return `(C, H, W)` of an image's shape; raises `ValueError` for a shape that is not an image's."""
    if len(input_shape) != 3:
        raise ValueError(f"the model takes images (C, H, W), and the data's examples have shape {input_shape}")
    channels, height, width = input_shape
    return channels, height, width


def blank_inputs(count: int, input_shape: tuple[int, ...]) -> Tensor:
    """Return `count` inputs of zeros, `(count, *input_shape)`: images as float32, tokens, of one axis, as int64."""
    return torch.zeros(count, *input_shape, dtype=torch.int64 if len(input_shape) == 1 else torch.float32)


def activate(name: Activation, values: Tensor) -> Tensor:
    """Return `values` passed through the activation called `name`, any shape."""
    return _ACTIVATIONS[name](values)


def uniform_weight(shape: tuple[int, ...], generator: torch.Generator, bound: float | None = None) -> Tensor:
    """Return a weight drawn uniformly from [-bound, bound].

    `shape` is `(out, in, ...)`; the default bound is 1 / sqrt(fan-in), torch's own for linear and
    convolution layers.
    """
    if bound is None:
        bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return (torch.rand(shape, generator=generator) * 2.0 - 1.0) * bound
