"""Meta-gradients computed in the span of a learner's own images: the same values for less work.

A fully connected first layer uses an image x only through W x, and gradient descent changes W only by outer products
with the learner's images. With an orthonormal basis Q of these n images, W = (W Q) Q^T + R, where R is zero on all
of the learner's images and unchanged by every step. So the rule can run on W Q, `(h, n)`, and on the images'
coordinates, n numbers each; the meta-gradient is the result times Q^T. This is the same function, not an
approximation: only the rounding differs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import vmap

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model, input_weight_of
from metaleak.clients.rules.rule import Rule, support_entry

_SQUARED_IMAGES_A_UNIT = 14
"""With more than sqrt(14 h) images for h units, finding the basis takes longer than it saves.

Measured for h of 64 and 256, 10 to 100 images of 784 pixels and one inner step; with more steps, more images would
also be worthwhile.
"""

_PART = 2 << 20
"""Bytes of the large weight's gradients that are computed at once, about the size of a core's cache."""


def own_span_pays(model: Model, rule: Rule, parameters: Parameters, images: int) -> bool:
    """Return whether computing a learner with this many `images` in their span is possible and faster.

    It is not used where the support set enters only through the adapted parameters, as in first-order MAML: its
    images do not appear in what is shared, but rounding in their span, at a relative size of 1e-8, would reveal them
    (span test, AUC 0.97).
    """
    name = input_weight_of(model)
    # As with models, a derived class must define the attribute again.
    if name is None or not vars(type(rule)).get("stays_in_span", False):
        return False
    if support_entry(rule) == "parameters":
        return False
    units, inputs = parameters[name].shape[-2:]
    few = images**2 <= _SQUARED_IMAGES_A_UNIT * units and images < inputs
    return few and parameters[name].device.type == "cpu"


def own_coordinates(episode: Episode) -> tuple[Tensor, Episode]:
    """Return an orthonormal basis `(..., pixels, n)` of all n images of an episode, and the episode in this basis.

    In the returned episode each image has n coordinates, `(..., images, n)`. The episode may be a batch of episodes;
    n is at most the number of pixels. Differentiable where the images are linearly independent.
    """
    return _coordinates(_flat_images(episode), episode)


def _flat_images(episode: Episode) -> Tensor:
    return torch.cat([episode.support_inputs.flatten(-3), episode.query_inputs.flatten(-3)], dim=-2)


def _coordinates(images: Tensor, episode: Episode) -> tuple[Tensor, Episode]:
    # Householder QR gives an orthonormal basis even if images are repeated or blank.
    basis, triangle = torch.linalg.qr(images.mT)
    shots = episode.support_inputs.shape[-4]
    inside = triangle.mT
    return basis, episode._replace(support_inputs=inside[..., :shots, :], query_inputs=inside[..., shots:, :])


def own_span_meta_gradients(
    model: Model, rule: Rule, parameters: Parameters, batch: Episode
) -> tuple[Parameters, Tensor]:
    """Return the meta-gradients of a batch of episodes, stacked `(L, ...)`, and the losses `(L,)`.

    Model and rule must meet the conditions of `own_span_pays`; the number of images is not limited.
    """
    gradients, back, losses = _in_span(model, rule, parameters, batch)
    name = _input_weight(model)
    return {**gradients, name: gradients[name] @ back}, losses


def own_span_in_parts(model: Model, rule: Rule, parameters: Parameters, batch: Episode) -> Iterator[Parameters]:
    """Return the meta-gradients of `own_span_meta_gradients`, bit for bit, a few episodes at a time.

    Written and read in parts, the large weight's gradients stay in the processor's cache. A part is valid only until
    the next one is requested, which reuses its memory.
    """
    gradients, back, _ = _in_span(model, rule, parameters, batch)
    gradients = {key: value.detach() for key, value in gradients.items()}
    return _multiplied(gradients, back.detach(), _input_weight(model))


def _multiplied(gradients: Parameters, back: Tensor, name: str) -> Iterator[Parameters]:
    inside = gradients[name]
    (count, units, _), inputs = inside.shape, back.shape[-1]
    most = max(1, _PART // (units * inputs * inside.element_size()))
    # A power of two, like the groups in which learners are summed.
    most = 1 << (most.bit_length() - 1)
    room = inside.new_empty((min(most, count), units, inputs))
    for start in range(0, count, most):
        end = min(start + most, count)
        product = torch.bmm(inside[start:end], back[start:end], out=room[: end - start])
        yield {key: product if key == name else value[start:end] for key, value in gradients.items()}


def _in_span(model: Model, rule: Rule, parameters: Parameters, batch: Episode) -> tuple[Parameters, Tensor, Tensor]:
    """Return the meta-gradients in coordinates, the matrices back to pixels `(L, n, pixels)`, and the losses."""
    images = _flat_images(batch)
    basis, inside = _coordinates(images, batch)
    name = _input_weight(model)
    # One product for all learners together takes half the time of one product per learner.
    weights = (basis.mT @ parameters[name].mT).mT

    def meta_gradient(weight: Tensor, episode: Episode) -> tuple[Parameters, Tensor]:
        return rule.meta_gradient(model, {**parameters, name: weight}, episode)

    gradients, losses = vmap(meta_gradient)(weights, inside)
    # A pixel that is 0 in all images must have a derivative of exactly 0: Adam would turn the basis's rounding errors
    # into steps.
    inked = images.abs().amax(dim=1) != 0
    return gradients, (basis * inked[..., None]).mT, losses


def _input_weight(model: Model) -> str:
    name = input_weight_of(model)
    assert name is not None
    return name
