"""The coefficients that a target would have in the gradient of a dense first layer, from the sent parameters.

The gradient is a sum of outer products `a x^T`, one for every image x. An adversary knows much about `a`: it is zero
at units that the image leaves inactive, and its direction follows from the image, its label, the parameters that the
server sent and, for support images, the observed gradient itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jacrev, vmap

from metaleak.clients.episode import Parameters
from metaleak.clients.models import DenseInput, ElementwiseFirst, Model, bias_of, dense_input_of
from metaleak.clients.rules import Rule, adapted_names, support_entry

_CHUNK = 64
"""The number of support images whose coefficients are computed at a time."""


def dense_input(model: Model) -> DenseInput:
    """Return the model's dense first layer; raises `ValueError` when it has none."""
    found = dense_input_of(model)
    if found is None:
        raise ValueError(f"the span test needs a dense first layer, which {type(model).__name__} does not have")
    return found


def activity(model: Model, parameters: Parameters, images: Tensor) -> Tensor:
    """Return how sensitive each first-layer unit is to each of `images (T, C, H, W)`, `(T, units)` in [-1, 1].

    For an `ElementwiseFirst` model it is the activation's derivative divided by the largest one (for ReLU 1 for an
    active unit and else 0); each coefficient of an image is proportional to it. For any other model it is 1 if some
    logit depends on the unit, and else 0.
    """
    outputs = _outputs(model, parameters, images)
    # As with the input weight, a subclass must define this member itself.
    if isinstance(model, ElementwiseFirst) and "first_activation" in vars(type(model)):
        bias = parameters.get(bias_of(dense_input(model).weight))
        before = outputs if bias is None else outputs + bias
        slope: Tensor = vmap(vmap(grad(model.first_activation)))(before)
        largest = slope.abs().amax() if slope.numel() else slope.new_ones(())
        return slope / largest.clamp(min=1e-30)
    moved: Tensor = vmap(jacrev(lambda output: _logits(model, parameters, output)))(outputs)
    return (moved != 0).any(dim=1).to(outputs.dtype)


def query_direction(model: Model, parameters: Parameters, images: Tensor, positions: Tensor) -> Tensor:
    """Return the first layer's coefficients of query images at the sent parameters, `(T, units)`.

    They are the derivative of the loss of each of `images (T, C, H, W)`, with its label in `positions (T,)`, with
    respect to the layer's output. For MAML they are an approximation, since the learner's adapted parameters are
    unknown.
    """

    def loss(output: Tensor, position: Tensor) -> Tensor:
        return F.cross_entropy(_logits(model, parameters, output), position)

    direction: Tensor = vmap(grad(loss))(_outputs(model, parameters, images), positions)
    return direction


def support_direction(
    model: Model,
    rule: Rule,
    parameters: Parameters,
    gradient: Parameters,
    images: Tensor,
    positions: Tensor,
) -> Tensor | None:
    """Return the first layer's coefficients of support images through second-order MAML, `(T, units)`, up to scale.

    With one inner step the meta-gradient is `v - rate H v`, where H is the Hessian of the support loss at the sent
    parameters and v the query gradient: a support image contributes *minus* its own Hessian times v. The observed
    `gradient` stands for v, from which it differs only by the small second term. For several steps this is the
    contribution in the first. `None` if support images do not enter through the Hessian, see `SupportEntry`.
    """
    if support_entry(rule) != "curvature":
        return None
    moving = adapted_names(rule, model, parameters)
    outer = {
        key: gradient[key] if key in moving and key in gradient else torch.zeros_like(value)
        for key, value in parameters.items()
    }

    def slope(output: Tensor, along: Tensor, position: Tensor) -> Tensor:
        """The derivative of the loss along v, which changes the layer's output by `along`."""

        def loss(at: Parameters, output: Tensor) -> Tensor:
            return F.cross_entropy(_logits(model, at, output), position)

        found, back = grad(loss, argnums=(0, 1))(parameters, output)
        changes = [(found[key] * value).sum() for key, value in outer.items()]
        return torch.stack([*changes, (back * along).sum()]).sum()

    # Every image has its own gradient, as large as the network, so only a few are computed at a time.
    outputs, along = (_outputs(model, one, images) for one in (parameters, outer))
    direction: Tensor = vmap(grad(slope), chunk_size=_CHUNK)(outputs, along, positions)
    return -direction


def _outputs(model: Model, parameters: Parameters, images: Tensor) -> Tensor:
    """Return the first layer's outputs for `images (T, C, H, W)` without bias, `(T, units)`."""
    first = dense_input(model)
    return first.inputs(images) @ parameters[first.weight].mT


def _logits(model: Model, parameters: Parameters, output: Tensor) -> Tensor:
    """Return the logits `(ways,)` of an image for which the first layer's output without bias is `output (units,)`.

    The model is given an image with the single pixel 1, and `output (units, 1)` as the layer's weight.
    """
    return model({**parameters, dense_input(model).weight: output[:, None]}, output.new_ones((1, 1)))[0]
