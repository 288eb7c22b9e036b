"""R-GAP: the example behind one gradient, layer by layer from the last to the first (Zhu and Blaschko 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.layerwise.chain import Chain, Stage
from metaleak.attacks.layerwise.last_layer import Loss, candidates
from metaleak.attacks.layerwise.least_squares import Constraints, solve
from metaleak.clients.episode import Parameters

_AS_GOOD = 10.0
"""A solution of the last layer is dropped where it misses a layer's constraints so many times more than another."""

_EXACT = 1e-8
"""Constraints that are missed by less than this part do not tell solutions apart."""


@dataclass(frozen=True)
class Recovered:
    """The input of one layer: `x` as reconstructed, and by what part the layer's constraints are missed.

    A layer with fewer independent constraints than unknowns is met without a residual by many inputs; the others'
    residuals, and `security.audit`, say so.
    """

    name: str
    x: Tensor
    residual: float


@dataclass(frozen=True)
class Reconstruction:
    """One `example (C, H, W)`, and from the first to the last layer what each was given.

    `others` are the layers of further examples that fit the gradient as well, of other roots of the last layer's
    equation. Without biases and with activations of `f(a x) = a f(x)`, a > 0, both roots fit at every layer: they
    differ by a factor all the way down, and only the range of the examples tells them apart.
    """

    example: Tensor
    layers: tuple[Recovered, ...]
    others: tuple[tuple[Recovered, ...], ...] = ()

    @property
    def residual(self) -> float:
        """Return the largest part by which the constraints of a layer are missed."""
        return max(layer.residual for layer in self.layers)


@dataclass(frozen=True)
class _Path:
    """A reconstruction on its way down: what is known of the layer before those in `layers`."""

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
    """Return the example of which `gradients` are the gradient of `loss`, by R-GAP.

    Dense layers are solved in closed form and convolutions by least squares on the constraints from weight and
    gradient, as operators (`iterations` of LSMR at most). `low` and `high` are the range of the examples: it decides
    where the layers' residuals do not. Precision is that of the gradients; float64 recovers float64.

    Raises `ValueError`, in one line that names the layer, where a convolution's output cannot be told from what
    follows it, as with ReLU, and for what `last_layer.candidates` refuses.
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
        key=lambda one: _strangeness(chain.example(one[0].x), low, high),
    )
    return Reconstruction(chain.example(found[0][0].x), found[0], tuple(found[1:]))


def _must_be_invertible(chain: Chain) -> None:
    for stage in chain.stages:
        if stage.operator.sliding is not None and stage.activation.inverse is None:
            raise ValueError(
                f"layer {stage.name}, a convolution, is followed by {stage.activation.name}, which cannot be "
                "inverted: what its inactive units were given is lost"
            )


def _solve(stage: Stage, path: _Path, gradients: Parameters, iterations: int) -> tuple[Recovered, Tensor]:
    """Return what the layer was given, and the loss gradient at its output as precisely as it is known."""
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
    """Return the path one layer further: what is known of the layer in `before`, which is empty at the first."""
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


def _strangeness(example: Tensor, low: float, high: float) -> tuple[float, float]:
    """Return how far the example is outside of the range, and then how faint it is: the least is the likeliest."""
    outside = torch.maximum(low - example, example - high).clamp(min=0.01 * (high - low)).max()
    return float(outside), -float((example - low).norm())
