"""Networks whose parameters are all in dense layers, and the inputs and gradients of these layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from metaleak.clients.episode import Parameters
from metaleak.clients.models.layers import ACTIVATIONS, Compute, follow
from metaleak.clients.models.model import Model

_TOLERANCE = 1e-4
"""The largest relative rounding error of float32 that is allowed in a network."""


@runtime_checkable
class OnlyDense(Protocol):
    """A model whose parameters are all in dense layers, and which computes each example by itself.

    The gradient of one example is then an outer product for each layer, and need not be formed to compute its norm,
    which is a product of two norms (Goodfellow 2015, "Efficient Per-Example Gradient Computations").
    """

    @property
    def dense_layers(self) -> Mapping[str, str | None] | None:
        """The names of each layer's weight and bias (`None` without one); `None` if the model has other parameters.

        Each pair is used in one call of `torch.nn.functional.linear` with inputs `(B, n)`, one row per example, and
        nowhere else. An example's logits depend on its own row only.
        """
        ...


def dense_layers_of(model: Model) -> Mapping[str, str | None] | None:
    """Return the dense layers of which the model consists; `None` for a model that does not declare them.

    A declaration is not inherited, since a derived class may compute something else.
    """
    return cast(OnlyDense, model).dense_layers if "dense_layers" in vars(type(model)) else None


def dense_layers_of_module(
    model: Compute, parameters: Parameters, shape: tuple[int, ...]
) -> Mapping[str, str | None] | None:
    """Return the dense layers of which `model` consists, for inputs `(B, *shape)`, or `None` where not verified.

    Verified is that each example goes through a chain of linear layers and activations and nothing else, with the
    same result alone and among others; that each parameter is used once; and that the layers' inputs and output
    gradients reproduce the gradient.
    """
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    followed = follow(model, parameters, images)
    try:
        chain = followed.layers().chain()
    except ValueError:
        return None
    if followed.layers().before or any(
        layer.kind != "linear" or len(layer.input_shape) != 1 or not ACTIVATIONS.issuperset(layer.after)
        for layer in chain
    ):
        return None
    found = {layer.weight: layer.bias for layer in chain if layer.weight is not None}
    named = [*found, *(bias for bias in found.values() if bias is not None)]
    if sorted(named) != sorted(parameters) or any(followed.uses[name] != 1 for name in named):
        return None
    together = model(parameters, images)
    alone = torch.cat([model(parameters, one[None]) for one in images])
    if not torch.allclose(together, alone, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None
    return found if _gives_the_gradient(model, found, parameters, images) else None


def _gives_the_gradient(
    model: Compute, layers: Mapping[str, str | None], parameters: Parameters, images: Tensor
) -> bool:
    """Return whether the layers' inputs and slopes reproduce the gradient, and the Hessian times a direction."""
    moving = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    weights, direction = [moving[name] for name in layers], {name: value.detach() for name, value in moving.items()}

    with torch.enable_grad():
        loss = model(moving, images).square().sum()
        slopes = torch.autograd.grad(loss, [*moving.values()], create_graph=True)
        along = torch.stack([(one * direction[name]).sum() for name, one in zip(moving, slopes, strict=True)]).sum()
        gradients = [slopes[[*moving].index(name)].detach() for name in layers]
        products = torch.autograd.grad(along, weights, allow_unused=True, materialize_grads=True)
    try:
        seen = passed(
            model, layers, parameters, frozenset(parameters), images, lambda logits: 2.0 * logits, direction
        )
    except (KeyError, NotImplementedError):
        # The weight is changed before it is multiplied with the inputs, or an activation has no forward derivative.
        return False
    made = [(one.slopes.mT @ one.inputs, _moved(one)) for one in seen]
    return all(
        torch.allclose(ours, expected, rtol=_TOLERANCE, atol=_TOLERANCE * float(1 + expected.abs().max()))
        for pair, both in zip(made, zip(gradients, products, strict=True), strict=True)
        for ours, expected in zip(pair, both, strict=True)
    )


def _moved(layer: "Passed") -> Tensor:
    """Return how the gradient of a layer's weight, the sum over examples, changes along the direction."""
    found = torch.zeros_like(layer.slopes.mT @ layer.inputs)
    if layer.slopes_moved is not None:
        found += layer.slopes_moved.mT @ layer.inputs
    return found if layer.inputs_moved is None else found + layer.slopes.mT @ layer.inputs_moved


@dataclass(frozen=True)
class Passed:
    """A dense layer's `inputs (B, n)`, and `slopes (B, h)`: the gradient of each example's loss in its outputs.

    `inputs_moved` and `slopes_moved` are the derivatives of both along a direction in parameter space, if one was
    given.
    """

    weight: str
    bias: str | None
    inputs: Tensor
    slopes: Tensor
    inputs_moved: Tensor | None = None
    slopes_moved: Tensor | None = None


def passed(
    model: Compute,
    layers: Mapping[str, str | None],
    parameters: Parameters,
    names: frozenset[str],
    inputs: Tensor,
    slopes_of: Callable[[Tensor], Tensor],
    direction: Parameters | None = None,
) -> list[Passed]:
    """Return the inputs and slopes, for `inputs (B, ...)`, of the dense `layers` with a parameter in `names`.

    `slopes_of` computes from the logits `(B, ways)` the gradient of each example's loss in them, of the same shape.
    With a `direction`, shaped like `parameters`, the derivatives along it are computed too, by one forward pass in
    addition to the backward pass (Pearlmutter 1994).
    """
    fixed = {name: value.detach() for name, value in parameters.items()}
    asked = {weight: bias for weight, bias in layers.items() if weight in names or bias in names}
    with torch.enable_grad():
        if direction is None:
            calls = _calls(model, asked, fixed, inputs, slopes_of)
            return [
                Passed(*pair, taken.detach(), slope)
                for pair, (taken, slope) in zip(asked.items(), calls, strict=True)
            ]
        with forward_ad.dual_level():
            dual = {name: _dual(value, direction[name].detach()) for name, value in fixed.items()}
            made = _calls(model, asked, dual, inputs, slopes_of)
            both = [[_apart(one) for one in call] for call in made]
    return [
        Passed(*pair, inputs, slopes, inputs_moved, slopes_moved)
        for pair, ((inputs, inputs_moved), (slopes, slopes_moved)) in zip(asked.items(), both, strict=True)
    ]


def _dual(value: Tensor, moved: Tensor) -> Tensor:
    made: Tensor = forward_ad.make_dual(value, moved)  # type: ignore[no-untyped-call]
    return made


def _apart(dual: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the value of a dual number and its derivative, which is `None` for a constant."""
    value, moved = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return value.detach(), None if moved is None else moved.detach()


def _calls(
    model: Compute,
    asked: Mapping[str, str | None],
    parameters: Parameters,
    inputs: Tensor,
    slopes_of: Callable[[Tensor], Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's inputs, and the derivatives of the loss in its outputs."""
    with _Tapped({id(parameters[weight]): weight for weight in asked}) as tapped:
        logits = model(parameters, inputs)
    taken, made = zip(*(tapped.calls[weight] for weight in asked), strict=True)
    with torch.no_grad():
        # Not from a loss by automatic differentiation: along a direction, the product with a constant in it takes
        # torch a millisecond.
        slope = slopes_of(logits)
    slopes = torch.autograd.grad(logits, made, slope)
    return list(zip(taken, slopes, strict=True))


class _Tapped(TorchFunctionMode):
    """Keeps the inputs and outputs of the linear layers with some weights; the outputs require gradients."""

    def __init__(self, weights: Mapping[int, str]) -> None:
        super().__init__()
        self._weights = weights
        self.calls: dict[str, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        weight = self._weights.get(id(args[1])) if func is F.linear and len(args) > 1 else None
        if weight is not None:
            made = made if made.requires_grad else made.requires_grad_()
            self.calls[weight] = args[0], made
        return made
