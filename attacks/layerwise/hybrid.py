"""The hybrid layer-wise method: what the constraints leave open is optimized, all layers before it at once.

After Chen and Campbell (2021, arXiv 2111.10178): a layer's input is sought that meets the layer's own constraints and
the gradients, has little total variation, and obeys a pull-back from the layer before it, started at the
least-squares solution. Their start is a dense pseudo-inverse and no formula of the pull-back is published. Here it
takes its strictest form: the input of a layer is what the layers before it make of an example, so the example alone
is unknown. All constraints are operators; they are solved by Gauss-Newton steps on Jacobian-vector products.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor
from torch.func import linearize, vjp

from metaleak.attacks.layerwise.chain import Chain
from metaleak.attacks.layerwise.last_layer import Loss
from metaleak.attacks.layerwise.operators import Convolution
from metaleak.attacks.layerwise.rgap import Reconstruction, Recovered, reconstruct
from metaleak.attacks.layerwise.security import ConvolutionShape, rank_of
from metaleak.clients.episode import Parameters

_EXACT = 1e-10
"""Below this relative residual the constraints count as met."""

_SHARPEST = 1e-3
"""Differences of neighbors below this are smoothed quadratically, those above by their size."""

_INNER = 400
"""Iterations of LSMR a step."""


@dataclass(frozen=True)
class Prior:
    """What is believed of examples beside their constraints: the weight of the total variation, and of the range."""

    variation: float = 1e-3
    range: float = 0.1


def reconstruct_hybrid(
    chain: Chain,
    gradients: Parameters,
    loss: Loss = "cross_entropy",
    *,
    low: float = 0.0,
    high: float = 1.0,
    steps: int = 15,
    prior: Prior | None = None,
) -> Reconstruction:
    """Return the example of which `gradients` are the gradient of `loss`: R-GAP as far as it determines the layers.

    From the last convolution on that lacks constraints down to the example all constraints are met together, by
    `steps` Gauss-Newton steps without and as many with the gradients of the layers before it, with the `prior` on
    examples `(C, H, W)` in [`low`, `high`]. The residual of these layers is that of all their constraints. Raises
    `ValueError` as R-GAP does.
    """
    found = reconstruct(chain, gradients, loss, low=low, high=high)
    last = _last_deficient(chain)
    if last is None:
        return found
    prior, limits = prior or Prior(), (low, high)
    # Gradients of the layers before it jump with their activations: at first they would only mislead.
    example = found.example.clamp(low, high)
    if last:
        # What the layers before it can make is a constraint, too: less of the prior is needed.
        weaker = Prior(prior.variation / 10, prior.range)
        example, _ = _gauss_newton(_residual(chain, found, gradients, last, last), example, weaker, limits, steps)
        prior = Prior(prior.variation / 1000, prior.range)
    example, missed = _gauss_newton(_residual(chain, found, gradients, last, 0), example, prior, limits, steps)
    made = chain.inputs(example)
    layers = [Recovered(stage.name, x, missed) for stage, x in zip(chain.stages[: last + 1], made, strict=False)]
    return Reconstruction((*layers, *found.layers[last + 1 :]))


def _last_deficient(chain: Chain) -> int | None:
    """Return the place of the last convolution whose constraints do not determine its input."""
    for place in range(len(chain.stages) - 1, -1, -1):
        operator = chain.stages[place].operator
        if isinstance(operator, Convolution):
            filters, channels, *kernel = operator.weight.shape
            shape = ConvolutionShape(
                (filters, channels, kernel[0], kernel[1]), operator.input_shape, operator.sliding
            )
            if rank_of(shape).deficit:
                return place
    return None


def _residual(
    chain: Chain, found: Reconstruction, gradients: Parameters, last: int, first: int
) -> Callable[[Tensor], Tensor]:
    """Return by what an example misses constraints up to layer `last`, each part relative to its size.

    They are the output of that layer, and the gradients of the layers from `first` to it.
    """
    output = found.layers[last + 1].x.reshape(chain.stages[last].operator.output_shape)
    inverse = chain.stages[last].activation.inverse
    assert inverse is not None
    wanted = inverse(output)
    after = _slope_at(chain, found, gradients, last)
    sizes = [gradients[stage.weight_name].norm() for stage in chain.stages[: last + 1]]

    def residual(example: Tensor) -> Tensor:
        inputs, x = [], example
        for stage in chain.stages[: last + 1]:
            inputs.append(x.reshape(stage.operator.input_shape))
            z = stage.before_activation(inputs[-1])
            x = stage.activation.forward(z)
        parts = [((z - wanted) / wanted.norm()).flatten()]
        dz = after
        for place in range(last, first - 1, -1):
            stage = chain.stages[place]
            made = stage.operator.weight_gradient(inputs[place], dz)
            parts.append(((made - gradients[stage.weight_name]) / sizes[place]).flatten())
            if place > first:
                before = chain.stages[place - 1]
                back = stage.operator.backward(dz).reshape(before.operator.output_shape)
                dz = back * before.activation.derivative(inputs[place].reshape(back.shape))
        return torch.cat(parts)

    return residual


def _slope_at(chain: Chain, found: Reconstruction, gradients: Parameters, last: int) -> Tensor:
    """Return the loss gradient at the output of stage `last`, from the layers after it."""
    final = chain.stages[-1]
    dz = _final_slope(found, gradients[final.weight_name])
    for place in range(len(chain.stages) - 1, last, -1):
        stage, before = chain.stages[place], chain.stages[place - 1]
        shape = before.operator.output_shape
        x = found.layers[place].x.reshape(shape)
        dz = stage.operator.backward(dz).reshape(shape) * before.activation.derivative(x)
    return dz


def _final_slope(found: Reconstruction, gradient: Tensor) -> Tensor:
    x = found.layers[-1].x
    return gradient @ x / x.square().sum()


def _gauss_newton(
    residual: Callable[[Tensor], Tensor], start: Tensor, prior: Prior, limits: tuple[float, float], steps: int
) -> tuple[Tensor, float]:
    """Return the example and its residual after Gauss-Newton steps from `start`, those of least objective.

    The total variation is met by weights of its squares that are renewed a step.
    """
    low, high = limits
    x = start
    damping = 1e-3
    value = _objective(residual, x, prior, limits)
    for _ in range(steps):
        rows = 1.0 / (_differences(x).abs() + _SHARPEST).sqrt()
        outside = ((x < low) | (x > high)).to(x)

        def full(x: Tensor, rows: Tensor = rows, outside: Tensor = outside) -> Tensor:
            beyond = outside * (x - x.detach().clamp(low, high))
            count = x.numel() ** 0.5
            smooth = (prior.variation / count) ** 0.5 * rows * _differences(x) / count**0.5
            return torch.cat([residual(x), prior.range * beyond.flatten() / count, smooth])

        step = _step(full, x, damping)
        for shrink in (1.0, 0.5, 0.25, 0.1):
            trial = x + shrink * step
            tried = _objective(residual, trial, prior, limits)
            if tried < value:
                break
        if not tried < value:
            # Also where it is not a number.
            damping *= 10
            if damping > 10:
                break
            continue
        x, value, damping = trial, tried, max(damping / 3, 1e-9)
        if float(residual(x).norm()) < _EXACT:
            break
    return x, float(residual(x).norm())


def _objective(residual: Callable[[Tensor], Tensor], x: Tensor, prior: Prior, limits: tuple[float, float]) -> float:
    beyond = torch.relu(limits[0] - x) + torch.relu(x - limits[1])
    return float(
        residual(x).square().sum()
        + prior.range**2 * beyond.square().mean()
        + prior.variation * _differences(x).abs().sum() / x.numel()
    )


def _differences(x: Tensor) -> Tensor:
    """Return the differences of neighbors in the last two axes, as one vector."""
    return torch.cat([(x[..., 1:, :] - x[..., :-1, :]).flatten(), (x[..., 1:] - x[..., :-1]).flatten()])


def _step(full: Callable[[Tensor], Tensor], x: Tensor, damping: float) -> Tensor:
    """Return the step that meets the linearized `full` best, damped (Levenberg and Marquardt), by LSMR."""
    with warnings.catch_warnings():
        # Torch warns of how it compiles its own forward derivatives.
        warnings.simplefilter("ignore")
        values, push = linearize(full, x)
    pull = vjp(full, x)[1]

    def forward(step: np.ndarray) -> np.ndarray:
        return np.asarray(push(torch.from_numpy(step.reshape(x.shape)).to(x)).double())

    def backward(change: np.ndarray) -> np.ndarray:
        return np.asarray(pull(torch.from_numpy(change.ravel()).to(x))[0].double().flatten())

    operator = LinearOperator((values.numel(), prod(x.shape)), matvec=forward, rmatvec=backward, dtype=np.float64)
    found = lsmr(
        operator, -np.asarray(values.double()), damp=damping, atol=1e-12, btol=1e-12, conlim=0, maxiter=_INNER
    )
    return torch.from_numpy(np.asarray(found[0])).reshape(x.shape).to(x)
