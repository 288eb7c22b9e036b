"""The hybrid layer-wise method: R-GAP, and optimization through all earlier layers where constraints are missing.

After Chen and Campbell (2021, arXiv 2111.10178), who search an input of a layer that satisfies the layer's
constraints and the gradients, has little total variation and obeys a pull-back from the layer before, starting at the
least-squares solution. They compute that with a dense pseudo-inverse, and publish no formula of the pull-back. Here
it takes its strictest form: the input of a layer must be the output of the layers before it for some example, so that
the example is the only unknown. Constraints are operators, and are solved by Gauss-Newton steps on Jacobian-vector
products.
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
    """Return the example whose gradient of `loss` is `gradients`, by R-GAP and, where that fails, optimization.

    R-GAP inverts the layers after the last convolution that lacks constraints. From that convolution down to the
    example, all constraints are solved together, by `steps` Gauss-Newton steps without the gradients of earlier
    layers and as many with them, with the `prior` on examples `(C, H, W)` in [`low`, `high`]. The residual of each of
    these layers is that of all their constraints. Raises `ValueError` as R-GAP does.
    """
    found = reconstruct(chain, gradients, loss, low=low, high=high)
    last = _last_deficient(chain)
    if last is None:
        return found
    prior, limits = prior or Prior(), (low, high)
    # The gradients of earlier layers are discontinuous where activations change: at first they would mislead.
    example = found.example.clamp(low, high)
    if last:
        # The image of the earlier layers is a constraint, too, so a weaker prior suffices.
        weaker = Prior(prior.variation / 10, prior.range)
        example, _ = gauss_newton(_residual(chain, found, gradients, last, last), example, weaker, limits, steps)
        prior = Prior(prior.variation / 1000, prior.range)
    example, missed = gauss_newton(_residual(chain, found, gradients, last, 0), example, prior, limits, steps)
    made = chain.inputs(example)
    layers = [Recovered(stage.name, x, missed) for stage, x in zip(chain.stages[: last + 1], made, strict=False)]
    return Reconstruction(example, (*layers, *found.layers[last + 1 :]))


def _last_deficient(chain: Chain) -> int | None:
    """Return the index of the last convolution whose constraints do not determine its input, or `None`."""
    for place in range(len(chain.stages) - 1, -1, -1):
        if deficit_of(chain.stages[place].operator):
            return place
    return None


def _residual(
    chain: Chain, found: Reconstruction, gradients: Parameters, last: int, first: int
) -> Callable[[Tensor], Tensor]:
    """Return the function from an example to its constraint violations up to layer `last`, in relative terms.

    The constraints are the output of layer `last`, and the gradients of the layers from `first` to `last`.
    """
    output = found.layers[last + 1].x.reshape(chain.stages[last].operator.output_shape)
    inverse = chain.stages[last].activation.inverse
    assert inverse is not None
    wanted = inverse(output)
    after = _slope_at(chain, found, gradients, last)
    sizes = [gradients[stage.weight_name].norm() for stage in chain.stages[: last + 1]]

    def residual(example: Tensor) -> Tensor:
        inputs, x = [], chain.first_input(example)
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
