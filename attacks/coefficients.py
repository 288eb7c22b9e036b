"""With which coefficients a target would enter the gradient of a dense first layer, by the sent parameters.

The gradient is a sum of outer products `a x^T`, one for every image x. An adversary knows a good deal of `a`: it is
zero where the image leaves a unit of the layer inactive, and its direction follows from the image, its label, the
sent parameters and, for support images, the observed gradient itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metaleak.clients.episode import Parameters
from metaleak.clients.models import HEAD, MLP, input_weight_of
from metaleak.clients.models.model import activate
from metaleak.clients.rules import MAML, Rule

_CHUNK = 64
"""Support images whose coefficients are computed at once."""


def activity(model: MLP, parameters: Parameters, images: Tensor) -> Tensor:
    """Return how far each first-layer unit answers to each of `images (T, C, H, W)`, `(T, units)` in [-1, 1].

    It is the activation's derivative over the largest one, for ReLU 1 where a unit is active and 0 where not: the
    layer's coefficients of an image are proportional to it, unit by unit.
    """
    weight = parameters[str(input_weight_of(model))]
    if not model.hidden:
        return weight.new_ones((len(images), len(weight)))
    before = F.linear(images.flatten(1), weight, parameters.get("layer1.bias"))
    slope: Tensor = vmap(vmap(grad(lambda value: activate(model.activation, value))))(before)
    largest = slope.abs().amax() if slope.numel() else slope.new_ones(())
    return slope / largest.clamp(min=1e-30)


def query_direction(model: MLP, parameters: Parameters, images: Tensor, positions: Tensor) -> Tensor:
    """Return the first layer's coefficients of query images under the sent parameters, `(T, units)`.

    The derivative of the loss of each of `images (T, C, H, W)` under its label in `positions (T,)` with respect to
    the layer's output. A learner takes it at its adapted parameters, which stay unknown: for MAML an approximation.
    """
    name, padded = _with_bias(model, parameters)

    def loss(bias: Tensor, image: Tensor, position: Tensor) -> Tensor:
        return _loss(model, {**padded, name: bias}, image, position)

    direction: Tensor = vmap(grad(loss), in_dims=(None, 0, 0))(padded[name], images, positions)
    return direction


def support_direction(
    model: MLP, rule: Rule, parameters: Parameters, gradient: Parameters, images: Tensor, positions: Tensor
) -> Tensor | None:
    """Return the first layer's coefficients of support images through second-order MAML, `(T, units)`, up to scale.

    One inner step gives the meta-gradient `v - rate H v` with the Hessian H of the support loss at the sent
    parameters and the query gradient v: a support image enters with *minus* its own Hessian times v. The observed
    `gradient` stands for v, of which it is all but the small second term. Of several steps this is the first.
    `None` where support images do not enter so: first-order rules, and Reptile, which treats all images alike.
    """
    if not isinstance(rule, MAML) or rule.order == 1:
        return None
    name, padded = _with_bias(model, parameters)
    outer = {key: gradient[key] if key in gradient else torch.zeros_like(value) for key, value in padded.items()}
    if rule.adapts == "head":
        outer = {key: value if key.startswith(HEAD) else torch.zeros_like(value) for key, value in outer.items()}

    def slope(bias: Tensor, image: Tensor, position: Tensor) -> Tensor:
        """The derivative of the loss along v."""

        def loss(at: Parameters) -> Tensor:
            return _loss(model, at, image, position)

        found = grad(loss)({**padded, name: bias})
        return torch.stack([(found[key] * along).sum() for key, along in outer.items()]).sum()

    # Every image has a gradient of its own, as large as the network: a few at a time.
    direction: Tensor = vmap(grad(slope), in_dims=(None, 0, 0), chunk_size=_CHUNK)(padded[name], images, positions)
    return -direction


def _with_bias(model: MLP, parameters: Parameters) -> tuple[str, Parameters]:
    """Return the name of the first layer's bias, and `parameters` with one of zeros where the layer has none."""
    weight = str(input_weight_of(model))
    name = weight.replace("weight", "bias")
    return name, {name: parameters[weight].new_zeros(len(parameters[weight])), **parameters}


def _loss(model: MLP, parameters: Parameters, image: Tensor, position: Tensor) -> Tensor:
    return F.cross_entropy(model(parameters, image[None]), position[None])
