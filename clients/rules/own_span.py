"""Learners computed in the span of their own images: the same meta-gradients for less work.

A fully connected first layer meets an image x only as W x, and gradient descent moves W only by outer products with
the learner's images. With an orthonormal basis Q of these n images, W = (W Q) Q^T + a rest that no image of the
learner meets and no step moves. So the rule may run on W Q, `(h, n)`, and on the images' coordinates, n numbers each;
the meta-gradient is the result times Q^T. It is the same function, not an approximation: only the rounding differs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import vmap

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model, input_weight_of
from metaleak.clients.rules.rule import Rule, support_entry

_SQUARED_IMAGES_A_UNIT = 14
"""With more than sqrt(14 h) images to h units finding the basis takes longer than it saves: measured for h of 64 and
256, 10 to 100 images of 784 pixels and one inner step; with more steps more would pay too.
"""

_PART = 2 << 20
"""Bytes of the large weight's gradients that are made at once, about what a core's cache holds."""


def own_span_pays(model: Model, rule: Rule, parameters: Parameters, images: int) -> bool:
    """Return whether a learner of so many `images` may be computed in their span, and faster, with model and rule.

    Not where the support set shows in the adapted parameters alone, as in first-order MAML: its images are no part of
    what is shared, but rounding in their span, at 1e-8 of it, would tell them (span test, AUC 0.97).
    """
    name = input_weight_of(model)
    # As with models, a derived class must define the member again.
    if name is None or not vars(type(rule)).get("stays_in_span", False):
        return False
    if support_entry(rule) == "parameters":
        return False
    units, inputs = parameters[name].shape[-2:]
    few = images**2 <= _SQUARED_IMAGES_A_UNIT * units and images < inputs
    return few and parameters[name].device.type == "cpu"


def own_coordinates(episode: Episode) -> tuple[Tensor, Episode]:
    """Return an orthonormal basis `(..., pixels, n)` of all n images of an episode, and the episode in it.

    There an image has n numbers, `(..., images, n)`. The episode may be a batch of episodes; n is at most the number
    of pixels. Differentiable where the images are linearly independent.
    """
    return _coordinates(_flat_images(episode), episode)


def _flat_images(episode: Episode) -> Tensor:
    return torch.cat([episode.support_inputs.flatten(-3), episode.query_inputs.flatten(-3)], dim=-2)


def _coordinates(images: Tensor, episode: Episode) -> tuple[Tensor, Episode]:
    # Householder's: a basis also where images repeat or are empty.
    basis, triangle = torch.linalg.qr(images.mT)
    shots = episode.support_inputs.shape[-4]
    inside = triangle.mT
    return basis, episode._replace(support_inputs=inside[..., :shots, :], query_inputs=inside[..., shots:, :])


def own_span_meta_gradients(
    model: Model, rule: Rule, parameters: Parameters, batch: Episode
) -> tuple[Parameters, Tensor]:
    """Return the meta-gradients of a batch of episodes, stacked `(L, ...)`, and the losses `(L,)`.

    For models and rules that `own_span_pays` lets pass, whether it pays or not.
    """
    gradients, back, losses = _in_span(model, rule, parameters, batch)
    name = _input_weight(model)
    return {**gradients, name: gradients[name] @ back}, losses


def own_span_in_parts(model: Model, rule: Rule, parameters: Parameters, batch: Episode) -> Iterator[Parameters]:
    """Return the meta-gradients of `own_span_meta_gradients`, a few episodes at a time, the same bits.

    Written and read a part at a time, the large weight's gradients stay in the processor's cache. A part is good
    until the next one is asked for, in whose room it lies.
    """
    gradients, back, _ = _in_span(model, rule, parameters, batch)
    gradients = {key: value.detach() for key, value in gradients.items()}
    return _multiplied(gradients, back.detach(), _input_weight(model))


def _multiplied(gradients: Parameters, back: Tensor, name: str) -> Iterator[Parameters]:
    inside = gradients[name]
    (count, units, _), inputs = inside.shape, back.shape[-1]
    most = max(1, _PART // (units * inputs * inside.element_size()))
    # A power of two, in which learners are also summed.
    most = 1 << (most.bit_length() - 1)
    room = inside.new_empty((min(most, count), units, inputs))
    for start in range(0, count, most):
        end = min(start + most, count)
        product = torch.bmm(inside[start:end], back[start:end], out=room[: end - start])
        yield {key: product if key == name else value[start:end] for key, value in gradients.items()}


def _in_span(model: Model, rule: Rule, parameters: Parameters, batch: Episode) -> tuple[Parameters, Tensor, Tensor]:
    """Return the meta-gradients in coordinates, what leads back from these, `(L, n, pixels)`, and the losses."""
    images = _flat_images(batch)
    basis, inside = _coordinates(images, batch)
    name = _input_weight(model)
    # One product for all learners together takes half the time of one a learner.
    weights = (basis.mT @ parameters[name].mT).mT

    def meta_gradient(weight: Tensor, episode: Episode) -> tuple[Parameters, Tensor]:
        return rule.meta_gradient(model, {**parameters, name: weight}, episode)

    gradients, losses = vmap(meta_gradient)(weights, inside)
    # A pixel that is 0 in all images has a derivative of exactly 0: Adam would turn the basis' rounding into steps.
    inked = images.abs().amax(dim=1) != 0
    return gradients, (basis * inked[..., None]).mT, losses


def _input_weight(model: Model) -> str:
    name = input_weight_of(model)
    assert name is not None
    return name
