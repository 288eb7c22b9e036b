"""R-GAP: one example from its gradient, layer by layer from the last to the first (Zhu and Blaschko 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.layerwise.chain import Chain, Stage
from metaleak.attacks.layerwise.last_layer import Loss, candidates
from metaleak.attacks.layerwise.least_squares import Constraints, solve
from metaleak.clients.episode import Parameters

_AS_GOOD = 10.0
"""A solution of the last layer is dropped if its residual at a layer exceeds another's by this factor."""

_EXACT = 1e-8
"""Relative residuals below this do not distinguish solutions."""


@dataclass(frozen=True)
class Recovered:
    """The reconstructed input `x` of one layer, and the relative residual of the layer's constraints.

    If a layer has fewer independent constraints than unknowns, many inputs have a residual of zero; the residuals of
    the layers before it, and `security.deficit_of`, show that.
    """

    name: str
    x: Tensor
    residual: float


@dataclass(frozen=True)
class Reconstruction:
    """One `example (C, H, W)`, and the input of each layer, from the first to the last.

    `others` are the layers' inputs for further examples that fit the gradient as well, from other roots of the last
    layer's equation. Without biases and with activations for which `f(a x) = a f(x)`, a > 0, both roots fit at every
    layer: the inputs differ by the same factor at all layers, and only the range of examples distinguishes them.
    """

    example: Tensor
    layers: tuple[Recovered, ...]
    others: tuple[tuple[Recovered, ...], ...] = ()

    @property
    def residual(self) -> float:
        """The largest relative residual of a layer's constraints."""
        return max(layer.residual for layer in self.layers)


@dataclass(frozen=True)
class _Path:
    """A partial reconstruction: `layers` are done; `z` and `dz` are what is known of the layer before them."""

    z: Tensor | None
    dz: Tensor
    layers: tuple[Recovered, ...] = ()


def reconstruct(
    chain: Chain,
    gradients: Parameters,
    loss: Loss = "cross_entropy",
    *,
    low: float = 0.0,
    high: float = 1.0,
    iterations: int = 5000,
) -> Reconstruction:
    """Return the example whose gradient of `loss` is `gradients`, by R-GAP.

    Dense layers are solved in closed form, and convolutions by least squares on the constraints from weight and
    gradient (at most `iterations` of LSMR). `low` and `high` are the range of examples, by which solutions are ranked
    if their residuals do not distinguish them. The precision is that of the gradients.

    Raises `ValueError`, in one line that names the layer, if the activation after a convolution cannot be inverted,
    as with ReLU, and as `last_layer.candidates` does.
    """
    _must_be_invertible(chain)
    *earlier, last = chain.stages
    paths = []
    for one in candidates(last, gradients, loss):
        missed = _missed(last, gradients[last.weight_name], one.x, one.dz, None)
        paths.append(_step(_Path(None, one.dz), last, Recovered(last.name, one.x, missed), chain.stages[-2:-1]))
    for place in range(len(earlier) - 1, -1, -1):
        stage = chain.stages[place]
        solved = [(path, _solve(stage, path, gradients, iterations)) for path in paths]
        best = min(found.residual for _, (found, _) in solved)
        kept = [one for one in solved if one[1][0].residual <= max(_AS_GOOD * best, _EXACT)]
        before = chain.stages[place - 1 : place] if place else ()
        paths = [_step(_Path(path.z, dz, path.layers), stage, found, before) for path, (found, dz) in kept]
    found = sorted(
        (_in_shape(path.layers, chain) for path in paths),
        key=lambda one: _implausibility(chain.example(one[0].x), low, high),
    )
    return Reconstruction(chain.example(found[0][0].x), found[0], tuple(found[1:]))


def _must_be_invertible(chain: Chain) -> None:
    for stage in chain.stages:
        if stage.operator.sliding is not None and stage.activation.inverse is None:
            raise ValueError(
                f"layer {stage.name}, a convolution, is followed by {stage.activation.name}, which cannot be "
                "inverted: the inputs of its inactive units are lost"
            )


def _solve(stage: Stage, path: _Path, gradients: Parameters, iterations: int) -> tuple[Recovered, Tensor]:
    """Return the layer's input, and the loss gradient at its output as precisely as it is known."""
    gradient, dz = gradients[stage.weight_name], path.dz
    if stage.operator.sliding is None:
        if stage.bias_name is not None:
            dz = gradients[stage.bias_name]
        size = float(dz.square().sum())
        if size == 0:
            raise ValueError(f"the gradient at layer {stage.name} is zero: all its units are inactive")
        x = stage.operator.weight_gradient_adjoint(gradient, dz) / size
        return Recovered(stage.name, x, _missed(stage, gradient, x, dz, path.z)), dz
    assert path.z is not None
    solution = solve(Constraints(stage.operator, dz, gradient, path.z - stage.offset), iterations)
    return Recovered(stage.name, solution.x, solution.residual), dz


def _missed(stage: Stage, gradient: Tensor, x: Tensor, dz: Tensor, z: Tensor | None) -> float:
    missed = float((stage.operator.weight_gradient(x, dz) - gradient).norm() / gradient.norm().clamp(min=1e-300))
    if z is None:
        return missed
    return max(missed, float((stage.before_activation(x) - z).norm() / z.norm().clamp(min=1e-300)))


def _step(path: _Path, stage: Stage, found: Recovered, before: tuple[Stage, ...]) -> _Path:
    """Return the path extended by `stage`, with `z` and `dz` of the layer in `before` (empty at the first layer)."""
    layers = (found, *path.layers)
    if not before:
        return _Path(None, path.dz, layers)
    shape, activation = before[0].operator.output_shape, before[0].activation
    x = found.x.reshape(shape)
    dz = stage.operator.backward(path.dz).reshape(shape) * activation.derivative(x)
    return _Path(None if activation.inverse is None else activation.inverse(x), dz, layers)


def _in_shape(layers: tuple[Recovered, ...], chain: Chain) -> tuple[Recovered, ...]:
    first = layers[0]
    return Recovered(first.name, first.x.reshape(chain.input_shape), first.residual), *layers[1:]


def _implausibility(example: Tensor, low: float, high: float) -> tuple[float, float]:
    """Return how far the example leaves its range, and then how faint it is; the smallest is the most plausible."""
    outside = torch.maximum(low - example, example - high).clamp(min=0.01 * (high - low)).max()
    return float(outside), -float((example - low).norm())
