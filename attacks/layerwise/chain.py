"""A network as a chain of linear maps and elementwise activations, checked against the network itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.layerwise.activations import IDENTITY, OutputView, activation_of
from metaleak.attacks.layerwise.operators import LayerOperator, operator_of
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Affine, Layer, layers_of
from metaleak.clients.models.layers import Compute, follow

_SAME = 1e-6
"""Part of the logits by which the chain may differ from the network that it stands for, in float64."""


@dataclass(frozen=True)
class Stage:
    """One layer: `x -> activation(W x + bias)`. `weight_name` and `bias_name` are those of the parameters."""

    name: str
    operator: LayerOperator
    bias: Tensor | None
    activation: OutputView
    weight_name: str
    bias_name: str | None

    @property
    def offset(self) -> Tensor | float:
        """Return the bias as it is added to the output, 0 for a layer without."""
        if self.bias is None:
            return 0.0
        return self.bias.reshape(-1, *[1] * (len(self.operator.output_shape) - 1))

    def before_activation(self, x: Tensor) -> Tensor:
        """Return `W x + bias` of the input `x`."""
        return self.operator.forward(x.reshape(self.operator.input_shape)) + self.offset


@dataclass(frozen=True)
class Chain:
    """A network of `stages`, each of which takes what the one before returns, and the shape of its examples.

    `normalization` is the fixed scale and shift, none of which is 0, of every pixel before the first stage.
    """

    stages: tuple[Stage, ...]
    input_shape: tuple[int, ...]
    normalization: Affine | None = None

    def entered(self, example: Tensor) -> Tensor:
        """Return what the first stage takes when the network sees `example`."""
        return example if self.normalization is None else self.normalization(example.flatten()).reshape(example.shape)

    def example(self, entered: Tensor) -> Tensor:
        """Return the example of which the first stage takes `entered`."""
        if self.normalization is not None:
            gain, offset = self.normalization.gain.to(entered), self.normalization.offset.to(entered)
            entered = (entered.flatten() - offset) / gain
        return entered.reshape(self.input_shape)

    def inputs(self, example: Tensor) -> list[Tensor]:
        """Return what each stage takes, and the logits, when the network sees `example`."""
        made = [self.entered(example)]
        for stage in self.stages:
            made.append(stage.activation.forward(stage.before_activation(made[-1])))
        return made


def chain_of(model: Compute, parameters: Parameters, input_shape: tuple[int, ...]) -> Chain:
    """Return `model` at `parameters` as a chain of stages.

    The chain is compared with the model on a random example. Raises `ValueError`, in one line that names the layer,
    where the model is no chain, where something else than one known activation stands between two layers or than a
    normalization before the first, where a layer is none that can be taken apart, and where the chain computes
    something else than the model.
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
        logits, ours = model(wide, example)[0], twin.inputs(example[0])[-1]
    if ours.shape != logits.shape or not torch.allclose(ours, logits, rtol=_SAME, atol=_SAME * float(logits.norm())):
        raise ValueError(
            "the network computes something else than its layers and activations one after the other: "
            "between them stands what is not seen here, such as a scale or a shift"
        )
    return chain


def _normalization(model: Compute, parameters: Parameters, example: Tensor) -> Affine | None:
    """Return how every pixel is scaled and shifted before the first layer, `None` where something else happens."""
    entered = [
        follow(model, parameters, some).first_input
        for some in (torch.zeros_like(example), torch.ones_like(example), example)
    ]
    if any(one is None or one.numel() != example.numel() for one in entered):
        return None
    blank, full, seen = (one.flatten() for one in entered if one is not None)
    found = Affine(full - blank, blank)
    fits = torch.allclose(found(example.flatten()), seen, rtol=_SAME, atol=_SAME)
    return found if fits and bool((found.gain != 0).all()) else None


def obstacle(layer: Layer) -> str | None:
    """Return what stands after `layer` beside one known activation, in words, or `None` where nothing does."""
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
        raise ValueError(f"layer {layer.name} is followed by {found}, which cannot be inverted here")
    activation = activation_of(layer.activation, layer.constants) if layer.activation else IDENTITY
    bias = None if layer.bias is None else parameters[layer.bias]
    return Stage(layer.name, operator, bias, activation, layer.weight, layer.bias)
