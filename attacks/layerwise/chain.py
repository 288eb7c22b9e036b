"""A network as a chain of linear maps and elementwise activations, verified against the network itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.layerwise.activations import IDENTITY, Activation, activation_of
from metaleak.attacks.layerwise.operators import LayerOperator, operator_of
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Affine, Layer, layers_of
from metaleak.clients.models.layers import Compute, follow

_SAME = 1e-6
"""The largest relative difference between the logits of chain and network, in float64."""


@dataclass(frozen=True)
class Stage:
    """One layer: `x -> activation(W x + bias)`. `weight_name` and `bias_name` are those of the parameters."""

    name: str
    operator: LayerOperator
    bias: Tensor | None
    activation: Activation
    weight_name: str
    bias_name: str | None

    @property
    def offset(self) -> Tensor | float:
        """The bias in the shape in which it is added to the output, 0 for a layer without bias."""
        if self.bias is None:
            return 0.0
        return self.bias.reshape(-1, *[1] * (len(self.operator.output_shape) - 1))

    def before_activation(self, x: Tensor) -> Tensor:
        """Return `W x + bias` for the input `x`."""
        return self.operator.forward(x.reshape(self.operator.input_shape)) + self.offset


@dataclass(frozen=True)
class Chain:
    """A network of `stages`, each applied to the output of the one before, on examples of `input_shape`.

    `normalization` is a fixed scale (not 0) and shift of every pixel before the first stage.
    """

    stages: tuple[Stage, ...]
    input_shape: tuple[int, ...]
    normalization: Affine | None = None

    def first_input(self, example: Tensor) -> Tensor:
        """Return the input of the first stage when the network is given `example`."""
        return example if self.normalization is None else self.normalization(example.flatten()).reshape(example.shape)

    def example(self, first_input: Tensor) -> Tensor:
        """Return the example for which the first stage's input is `first_input`."""
        if self.normalization is not None:
            gain, offset = self.normalization.gain.to(first_input), self.normalization.offset.to(first_input)
            first_input = (first_input.flatten() - offset) / gain
        return first_input.reshape(self.input_shape)

    def inputs(self, example: Tensor) -> list[Tensor]:
        """Return the input of each stage, and the logits, when the network is given `example`."""
        made = [self.first_input(example)]
        for stage in self.stages:
            made.append(stage.activation.forward(stage.before_activation(made[-1])))
        return made


def chain_of(model: Compute, parameters: Parameters, input_shape: tuple[int, ...]) -> Chain:
    """Return `model` at `parameters` as a chain of stages.

    The chain is compared with the model on a random example. Raises `ValueError`, in one line that names the layer,
    if the model is not a chain of dense layers and convolutions, with at most one supported activation after each and
    at most a normalization before the first, or if the chain's logits differ from the model's.
    """
    example = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = {name: value.detach().double() for name, value in parameters.items()}
    found = layers_of(model, wide, example)
    normalization = _normalization(model, wide, example) if found.before else None
    if found.before and normalization is None:
        raise ValueError(f"the example passes {' and '.join(found.before)} before the first layer")
    chain = Chain(tuple(_stage(layer, parameters) for layer in found.chain()), input_shape, normalization)
    twin = Chain(tuple(_stage(layer, wide) for layer in found.chain()), input_shape, normalization)
    with torch.no_grad():
        logits, of_chain = model(wide, example)[0], twin.inputs(example[0])[-1]
    if of_chain.shape != logits.shape or not torch.allclose(
        of_chain, logits, rtol=_SAME, atol=_SAME * float(logits.norm())
    ):
        raise ValueError(
            "the network computes something other than its layers and activations one after the other: "
            "there must be no further operation between them, such as a scale or a shift"
        )
    return chain


def _normalization(model: Compute, parameters: Parameters, example: Tensor) -> Affine | None:
    """Return the scale and shift of every pixel before the first layer, `None` if something else is computed."""
    first_input = [
        follow(model, parameters, some).first_input
        for some in (torch.zeros_like(example), torch.ones_like(example), example)
    ]
    if any(one is None or one.numel() != example.numel() for one in first_input):
        return None
    blank, full, seen = (one.flatten() for one in first_input if one is not None)
    found = Affine(full - blank, blank)
    fits = torch.allclose(found(example.flatten()), seen, rtol=_SAME, atol=_SAME)
    return found if fits and bool((found.gain != 0).all()) else None


def obstacle(layer: Layer) -> str | None:
    """Return the name of an operation after `layer` other than one supported activation, or `None`."""
    names = [name for name in layer.after if name != "dropout"]
    others = [name for name in names if name != layer.activation]
    if others:
        return others[0]
    if len(names) > 1:
        return " and ".join(names)
    try:
        activation_of(names[0], layer.constants) if names else None
    except ValueError:
        return names[0]
    return None


def _stage(layer: Layer, parameters: Parameters) -> Stage:
    if layer.weight is None:
        raise ValueError(f"layer {layer.name} has no weight")
    operator = operator_of(layer, parameters[layer.weight])
    if (found := obstacle(layer)) is not None:
        raise ValueError(f"layer {layer.name} is followed by {found}, which cannot be inverted")
    activation = activation_of(layer.activation, layer.constants) if layer.activation else IDENTITY
    bias = None if layer.bias is None else parameters[layer.bias]
    return Stage(layer.name, operator, bias, activation, layer.weight, layer.bias)
