"""The contribution of one image to a meta-gradient, as far as the adversary can compute it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metaleak.attacks.at_once import number_at_once
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Decoupled, Model
from metaleak.clients.rules import Rule, cross_entropy, outer_point, taken_back

_CHUNK = 64
"""The number of images whose gradients are computed at a time on a CPU."""

_FEW = 8
"""The number of whole-episode, second-order meta-gradients that are computed at a time on a CPU."""


def query_contributions(
    model: Model, rule: Rule, parameters: Parameters, support: Tensor, images: Tensor, positions: Tensor
) -> Tensor:
    """Return each image's own query gradient, averaged over stand-ins for the unknown support set, `(B, D)`.

    `support (K, ways, shots, C, H, W)` are K support sets of the learner's classes, `images (B, C, H, W)` the targets
    with their label `positions (B,)`. For each stand-in, the gradient of the image's loss is taken at the parameters
    at which the rule differentiates the query loss (`outer_point`), usually those adapted to the stand-in, minus the
    part of the gradient at the sent parameters that the rule subtracts (`taken_back`). The D entries are those of all
    parameters, concatenated. The meta-gradient is the mean of such contributions over the query set, multiplied by
    the Jacobian of the adaptation. The Jacobian is omitted: in experiments it cost 25 times the work and found no
    more members.

    A model whose examples are coupled (batch normalization) is decoupled at the stand-in's own statistics.
    """
    labels = torch.arange(support.shape[1], device=support.device).repeat_interleave(support.shape[2])

    def of_stand_in(one: Tensor) -> Tensor:
        episode = Episode(one, labels, one, labels)
        adapted = {name: value.detach() for name, value in outer_point(rule, model, parameters, episode).items()}
        found = _each_gradient(model, adapted, one, images, positions)
        if part := taken_back(rule):
            found = found - part * _each_gradient(model, parameters, one, images, positions)
        return found

    sets = support.flatten(1, 2)
    if number_at_once(1, images.device) > 1 and not isinstance(model, Decoupled):
        together: Tensor = vmap(of_stand_in)(sets).mean(dim=0)
        return together
    # One stand-in after the other, which on a CPU is no slower and takes less memory.
    total = torch.zeros(len(images), sum(value.numel() for value in parameters.values()), device=images.device)
    for one in sets:
        total += of_stand_in(one)
    return total / len(sets)


def _each_gradient(model: Model, parameters: Parameters, beside: Tensor, images: Tensor, positions: Tensor) -> Tensor:
    """Return the gradient of each image's loss at `parameters`, in a batch with the images `beside` it, `(B, D)`."""
    single = model.decoupled(parameters, beside) if isinstance(model, Decoupled) else model

    def loss(parameters: Parameters, image: Tensor, position: Tensor) -> Tensor:
        return cross_entropy(single, parameters, image[None], position[None])

    chunk = number_at_once(_CHUNK, images.device)
    return flattened(vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=chunk)(parameters, images, positions))


def support_contributions(
    model: Model,
    rule: Rule,
    parameters: Parameters,
    support: Tensor,
    query: Tensor,
    images: Tensor,
    positions: Tensor,
) -> Tensor:
    """Return how adding each image to the support set changes the meta-gradient, `(B, D)`.

    The change is averaged over K pairs of stand-ins `support (K, ways, shots, C, H, W)` and
    `query (K, ways, queries, C, H, W)`. The image is added with the weight of one of the set's own images. The change
    includes the effect through inner steps and Hessian, for any rule.
    """
    ways, shots, queries = support.shape[1], support.shape[2], query.shape[2]
    held, asked = (torch.arange(ways, device=images.device).repeat_interleave(count) for count in (shots, queries))
    # The mean loss is over one more image, which a larger weight of the labels compensates.
    weight = (ways * shots + 1) / (ways * shots)
    known = F.one_hot(held, ways) * weight
    total = torch.zeros(len(images), sum(value.numel() for value in parameters.values()), device=images.device)
    for one, other in zip(support.flatten(1, 2), query.flatten(1, 2), strict=True):

        def added(image: Tensor, label: Tensor, one: Tensor = one, other: Tensor = other) -> Parameters:
            episode = Episode(torch.cat([one, image[None]]), torch.cat([known, label[None]]), other, asked)
            return rule.meta_gradient(model, parameters, episode)[0]

        labels = F.one_hot(positions, ways) * weight
        total += flattened(vmap(added, chunk_size=number_at_once(_FEW, images.device))(images, labels))
        total -= flattened({name: value[None] for name, value in added(images[0], 0.0 * labels[0]).items()})
    return total / len(support)


def flattened(stacked: Parameters) -> Tensor:
    """Return stacked tensors `(B, ...)` concatenated to one `(B, D)`, in the mapping's order."""
    return torch.cat([value.detach().flatten(1) for value in stacked.values()], dim=1)
