"""The meta-gradients of a batch of episodes, computed together where possible."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules.own_span import own_span_in_parts, own_span_meta_gradients, own_span_pays
from metaleak.clients.rules.released_means import ReleasedMeans, reads_means
from metaleak.clients.rules.rule import Perturb, Rule
from metaleak.defenses import CLIP_NAME


def batch_meta_gradients(
    model: Model,
    rule: Rule,
    parameters: Parameters,
    batch: Episode,
    perturbs: Sequence[Perturb | None] = (),
    means: Sequence[ReleasedMeans | None] = (),
) -> tuple[Parameters, Tensor]:
    """Return the meta-gradients of a batch of episodes, stacked `(L, ...)`, and the losses `(L,)`.

    With a single episode, an inner defense in `perturbs`, or released `means`, the rule is called for each episode
    separately, because such defenses draw their noise inside the call. Otherwise all episodes are computed at once
    under `vmap`, in the span of their own images where that is possible and faster.
    """
    count = len(batch.support_labels)
    if count > 1 and not any(perturbs) and not any(means):
        if _in_own_span(model, rule, parameters, batch):
            gradients, losses = own_span_meta_gradients(model, rule, parameters, batch)
        else:
            gradients, losses = vmap(lambda one: rule.meta_gradient(model, parameters, one))(batch)
        return {name: value.detach() for name, value in gradients.items()}, losses.detach()
    computed = [
        meta_gradient(model, rule, parameters, Episode(*(part[row] for part in batch)), perturb, released)
        for row, perturb, released in zip(
            range(count), perturbs or [None] * count, means or [None] * count, strict=True
        )
    ]
    return stacked([gradient for gradient, _ in computed]), torch.stack([loss for _, loss in computed]).detach()


def batch_in_parts(
    model: Model,
    rule: Rule,
    parameters: Parameters,
    batch: Episode,
    perturbs: Sequence[Perturb | None] = (),
    means: Sequence[ReleasedMeans | None] = (),
) -> Iterator[Parameters]:
    """Return the meta-gradients of `batch_meta_gradients`, bit for bit, a few episodes at a time and in order.

    Errors in an episode are raised by this call, not during iteration. A part is valid only until the next one is
    requested.
    """
    alone = len(batch.support_labels) == 1 or any(perturbs) or any(means)
    if not alone and _in_own_span(model, rule, parameters, batch):
        return own_span_in_parts(model, rule, parameters, batch)
    return iter([batch_meta_gradients(model, rule, parameters, batch, perturbs, means)[0]])


def _in_own_span(model: Model, rule: Rule, parameters: Parameters, batch: Episode) -> bool:
    images = batch.support_inputs.shape[1] + batch.query_inputs.shape[1]
    return own_span_pays(model, rule, parameters, images)


def meta_gradient(
    model: Model,
    rule: Rule,
    parameters: Parameters,
    episode: Episode,
    perturb: Perturb | None = None,
    means: ReleasedMeans | None = None,
) -> tuple[Parameters, Tensor]:
    """Return the meta-gradient of one episode and the loss, computed from released `means` if they are given.

    If the clipping norm of the `means` is adaptive, the meta-gradient has one more entry, `CLIP_NAME`.

    Raises `ValueError` for `means` together with an inner defense, or with a rule that cannot be computed from means
    alone.
    """
    if means is None:
        return rule.meta_gradient(model, parameters, episode, perturb)
    if perturb is not None:
        raise ValueError(
            "defenses: a defense of the place 'inner' cannot be combined with one of the place 'example'"
        )
    means.falls.clear()
    gradient, loss = reads_means(rule).released_meta_gradient(model, parameters, episode, means)
    if means.falls:
        some = next(iter(gradient.values()))
        gradient = {**gradient, CLIP_NAME: some.new_full((1,), sum(means.falls) / len(means.falls))}
    return gradient, loss


def stacked(gradients: Sequence[Parameters]) -> Parameters:
    """Stack gradients of equal shapes along a new leading axis."""
    return {name: torch.stack([gradient[name] for gradient in gradients]).detach() for name in gradients[0]}
