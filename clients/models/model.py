"""What a few-shot model is: how to start its parameters, and how to compute logits from them."""

import math
from collections.abc import Callable
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

HEAD = "head."
"""Prefix of the names of the parameters that make the classifier: what ANIL adapts."""


@runtime_checkable
class Model(Protocol):
    """A classifier as a pure function of its parameters.

    A model is also its configuration: a frozen pydantic model whose fields are what the experiment file says.
    The classifier's parameters have names that begin with `head.`.
    """

    def initialize(self, image_shape: tuple[int, int, int], ways: int, generator: torch.Generator) -> Parameters:
        """Return fresh float32 parameters for images `(C, H, W)` and `ways` classes."""
        ...

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Return logits `(B, ways)` for `images (B, C, H, W)`."""
        ...


@runtime_checkable
class Decoupled(Protocol):
    """A model whose examples depend on one another through the batch, and can be taken apart."""

    def decoupled(self, parameters: Parameters, reference: Tensor) -> Model:
        """Return the model with the batch's part held as it is for the images `reference` at `parameters`.

        In what is returned, each image's logits depend on that image alone.
        """
        ...


@runtime_checkable
class LinearInput(Model, Protocol):
    """A model that meets an image only as the product of one weight with its flattened pixels as they are."""

    @property
    def input_weight(self) -> str:
        """Return the name of that weight, a parameter `(units, pixels)`.

        The model computes with `(units, n)` and images `(B, n)` as well, and in float64. If that layer has a bias,
        `(units,)`, its name is that of the weight with `bias` for the last part, `weight`; no other parameter may
        have this name.
        """
        ...


@runtime_checkable
class ElementwiseFirst(LinearInput, Protocol):
    """A `LinearInput` model whose first layer passes every output through one function, each by itself."""

    def first_activation(self, values: Tensor) -> Tensor:
        """Return that function of `values`, any shape, differentiable."""
        ...


def input_weight_of(model: Model) -> str | None:
    """Return the name of the weight that alone meets the images, or `None` for a model that says of none.

    Each class speaks for itself: one derived from it may compute otherwise.
    """
    return model.input_weight if isinstance(model, LinearInput) and "input_weight" in vars(type(model)) else None


def bias_of(weight: str) -> str:
    """Return the name of the bias that belongs to the weight of this name: `layer1.bias` to `layer1.weight`."""
    return weight.removesuffix("weight") + "bias"


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
