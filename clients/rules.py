"""Meta-learning rules: how an episode becomes a meta-gradient, as pure functions."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import HEAD, Model

InnerSteps = Annotated[int, Field(ge=1, le=100)]
InnerRate = Annotated[float, Field(gt=0, le=100)]

Perturb = Callable[[Parameters, int], Parameters]
"""What a defence does to the gradient of inner step `int`, counted from 0."""


@runtime_checkable
class Rule(Protocol):
    """A meta-learning rule.

    `meta_gradient` is a pure function of its arguments: the same one runs in the learner, under `torch.func.vmap`
    over a batch of episodes, and inside the attack that inverts it. `adapt` is what a learner does with the
    initialisation at test time.
    """

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, Tensor]:
        """Return the meta-gradient, shaped like `parameters`, and the outer loss, a scalar."""
        ...

    def adapt(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        """Return the parameters after adaptation to the episode's support set."""
        ...


def cross_entropy(model: Model, parameters: Parameters, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of `model` on `images (B, C, H, W)`.

    `labels` are positions `(B,)` or class probabilities `(B, ways)`; the latter are differentiable.
    """
    return F.cross_entropy(model(parameters, images), labels)


def inner_steps(
    model: Model,
    parameters: Parameters,
    images: Tensor,
    labels: Tensor,
    steps: int,
    rate: float,
    names: frozenset[str] | None = None,
    perturb: Perturb | None = None,
) -> Parameters:
    """Return `parameters` after `steps` of gradient descent on the cross-entropy (Finn et al. 2017, eq. 1).

    Only `names` move (all when `None`). Differentiable in every input; `perturb` sees each step's gradient first.
    """
    fixed = {name: value for name, value in parameters.items() if names is not None and name not in names}
    moving = {name: value for name, value in parameters.items() if name not in fixed}

    def loss(moving: Parameters) -> Tensor:
        return cross_entropy(model, {**fixed, **moving}, images, labels)

    def descent(moving: Parameters) -> Tensor:
        return -rate * loss(moving)

    for step in range(steps):
        if perturb is None:
            # The rate at the loss, a scalar, and not at every gradient: large networks are bound by memory.
            update: Parameters = grad(descent)(moving)
        else:
            update = {name: -rate * value for name, value in perturb(grad(loss)(moving), step).items()}
        moving = {name: value + update[name] for name, value in moving.items()}
    return {name: fixed[name] if name in fixed else moving[name] for name in parameters}


class MAML(BaseModel):
    """Model-agnostic meta-learning: the derivative of the query loss after adaptation (Finn et al. 2017).

    `order: 2` differentiates through the adaptation; `order: 1` takes the query gradient at the adapted parameters
    as it is (FOMAML). `adapts: head` moves only the classifier, `head.*`, in the inner loop (ANIL, Raghu et al.
    2020); all parameters learn in the outer one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inner_steps: InnerSteps = 1
    inner_rate: InnerRate = 0.4
    order: Literal[1, 2] = 2
    adapts: Literal["all", "head"] = "all"

    def adapt(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        """Return the parameters after adaptation to the episode's support set."""
        head = frozenset(name for name in parameters if name.startswith(HEAD))
        return inner_steps(
            model,
            parameters,
            episode.support_images,
            episode.support_labels,
            self.inner_steps,
            self.inner_rate,
            names=head if self.adapts == "head" else None,
            perturb=perturb,
        )

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, Tensor]:
        """Return the meta-gradient, shaped like `parameters`, and the query loss after adaptation.

        Order 2: d/dw L(adapt(w); query). Order 1: d/dtheta L(theta; query) at theta = adapt(w). A `perturb` that
        adds noise is part of the function that is differentiated; the noise is a constant of it.
        """

        def query_loss(adapted: Parameters) -> Tensor:
            return cross_entropy(model, adapted, episode.query_images, episode.query_labels)

        def loss_after_adaptation(parameters: Parameters) -> Tensor:
            return query_loss(self.adapt(model, parameters, episode, perturb))

        if self.order == 2:
            gradient, loss = grad_and_value(loss_after_adaptation)(parameters)
        else:
            gradient, loss = grad_and_value(query_loss)(self.adapt(model, parameters, episode, perturb))
        return gradient, loss


def first_order_maml(inner_steps: int = 1, inner_rate: float = 0.4) -> MAML:
    """Return first-order MAML (FOMAML): the Hessian is left out."""
    return MAML(inner_steps=inner_steps, inner_rate=inner_rate, order=1)


def anil(inner_steps: int = 1, inner_rate: float = 0.4) -> MAML:
    """Return ANIL, "almost no inner loop": only the classifier adapts."""
    return MAML(inner_steps=inner_steps, inner_rate=inner_rate, adapts="head")


class Reptile(BaseModel):
    """Reptile: the direction to where gradient descent on all of a learner's images leads (Nichol et al. 2018)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inner_steps: InnerSteps = 5
    inner_rate: InnerRate = 0.1

    def adapt(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        """Return the parameters after adaptation to the episode's support set."""
        images, labels = episode.support_images, episode.support_labels
        return inner_steps(model, parameters, images, labels, self.inner_steps, self.inner_rate, perturb=perturb)

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, Tensor]:
        """Return (w - theta) / inner_rate, shaped like `parameters`, and the loss on all images at theta.

        theta are the parameters after `inner_steps` on the support and the query set together: Reptile knows no
        split. The result equals the sum of the inner gradients.
        """
        images = torch.cat([episode.support_images, episode.query_images])
        labels = torch.cat([episode.support_labels, episode.query_labels])
        adapted = inner_steps(model, parameters, images, labels, self.inner_steps, self.inner_rate, perturb=perturb)
        gradient = {name: (value - adapted[name]) / self.inner_rate for name, value in parameters.items()}
        return gradient, cross_entropy(model, adapted, images, labels)


def batch_meta_gradients(
    model: Model, rule: Rule, parameters: Parameters, batch: Episode, perturbs: Sequence[Perturb | None] = ()
) -> tuple[Parameters, Tensor]:
    """Return the meta-gradients of a batch of episodes, stacked `(L, ...)`, and the losses `(L,)`.

    One episode, or any with an inner defence in `perturbs`, is computed by a plain call of the rule: an inner defence
    draws its noise inside it. All others are computed at once under `vmap`.
    """
    count = len(batch.support_labels)
    if count > 1 and not any(perturbs):
        gradients, losses = vmap(lambda one: rule.meta_gradient(model, parameters, one))(batch)
        return {name: value.detach() for name, value in gradients.items()}, losses.detach()
    computed = [
        rule.meta_gradient(model, parameters, Episode(*(part[row] for part in batch)), perturb)
        for row, perturb in zip(range(count), perturbs or [None] * count, strict=True)
    ]
    return stacked([gradient for gradient, _ in computed]), torch.stack([loss for _, loss in computed]).detach()


def stacked(gradients: Sequence[Parameters]) -> Parameters:
    """Return gradients shaped like one another as one, with a leading axis."""
    return {name: torch.stack([gradient[name] for gradient in gradients]).detach() for name in gradients[0]}
