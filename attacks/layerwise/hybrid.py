"""The hybrid layer-wise method: what the constraints leave open is optimized, all layers before it at once.

After Chen and Campbell (2021, arXiv 2111.10178): a layer's input is sought that meets the layer's own constraints and
the gradients, has little total variation, and obeys a pull-back from the layer before it, started at the
least-squares solution. Their start is a dense pseudo-inverse and no formula of the pull-back is published. Here it
takes its strictest form: the input of a layer is what the layers before it make of an example, so the example alone
is unknown. All constraints are operators; they are solved by Gauss-Newton steps on Jacobian-vector products.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from metaleak.attacks.layerwise.chain import Chain
from metaleak.attacks.layerwise.gauss_newton import Prior, gauss_newton
from metaleak.attacks.layerwise.last_layer import Loss
from metaleak.attacks.layerwise.rgap import Reconstruction, Recovered, reconstruct
from metaleak.attacks.layerwise.security import deficit_of
from metaleak.clients.episode import Parameters


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
        example, _ = gauss_newton(_residual(chain, found, gradients, last, last), example, weaker, limits, steps)
        prior = Prior(prior.variation / 1000, prior.range)
    example, missed = gauss_newton(_residual(chain, found, gradients, last, 0), example, prior, limits, steps)
    made = chain.inputs(example)
    layers = [Recovered(stage.name, x, missed) for stage, x in zip(chain.stages[: last + 1], made, strict=False)]
    return Reconstruction(example, (*layers, *found.layers[last + 1 :]))


def _last_deficient(chain: Chain) -> int | None:
    """Return the place of the last convolution whose constraints do not determine its input."""
    for place in range(len(chain.stages) - 1, -1, -1):
        if deficit_of(chain.stages[place].operator):
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
        inputs, x = [], chain.entered(example)
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
