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
"""Images whose gradients are computed at once on a CPU."""

_FEW = 8
"""Images whose second-order meta-gradients, of a whole episode each, are computed at once on a CPU."""


def query_contributions(
    model: Model, rule: Rule, parameters: Parameters, support: Tensor, images: Tensor, positions: Tensor
) -> Tensor:
    """Return each image's own query gradient, averaged over stand-ins for the unknown support set, `(B, D)`.

    `support (K, ways, shots, C, H, W)` are K support sets of the learner's classes, `images (B, C, H, W)` the images
    asked about with their `positions (B,)`. For every stand-in the image's loss is differentiated where the rule does
    so with its query images (`outer_point`): mostly at the parameters adapted to the stand-in, less what the rule
    takes back of the gradient at the sent parameters (`taken_back`). The D entries are those of all parameters, one
    after the other. The meta-gradient is the mean of such contributions over the query set, through the adaptation's
    Jacobian, which is left out: measured, it costs 25 times the work and finds no more.

    A model whose examples are coupled (batch normalization) is taken apart at the stand-in's own statistics.
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
    # One after the other: on a CPU that is no slower, and takes less memory.
    total = torch.zeros(len(images), sum(value.numel() for value in parameters.values()), device=images.device)
    for one in sets:
        total += of_stand_in(one)
    return total / len(sets)


def _each_gradient(model: Model, parameters: Parameters, beside: Tensor, images: Tensor, positions: Tensor) -> Tensor:
    """Return the gradient of each image's loss at `parameters`, `(B, D)`, in a batch with the images `beside` it."""
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
    """Return by how much each image, added to the support set, moves the meta-gradient, `(B, D)`.

    Averaged over K pairs of stand-ins `support (K, ways, shots, C, H, W)` and `query (K, ways, queries, C, H, W)`.
    The image is added with the weight of one of the set's own, so whatever the rule is, its inner steps and its
    Hessian are in the answer.
    """
    ways, shots, queries = support.shape[1], support.shape[2], query.shape[2]
    held, asked = (torch.arange(ways, device=images.device).repeat_interleave(count) for count in (shots, queries))
    # The mean over one image more, with the labels' weight that makes up for it.
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
    """Return stacked tensors `(B, ...)` as one `(B, D)`, in the order of their names' appearance."""
    return torch.cat([value.detach().flatten(1) for value in stacked.values()], dim=1)
