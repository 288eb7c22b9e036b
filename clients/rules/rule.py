"""What a meta-learning rule is, and the gradient descent that all of them share."""

from collections.abc import Callable
from typing import Annotated, Protocol, runtime_checkable

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.func import grad

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model

InnerSteps = Annotated[int, Field(ge=1, le=100)]
InnerRate = Annotated[float, Field(gt=0, le=100)]

Perturb = Callable[[Parameters, int], Parameters]
"""What a defense does to the gradient of inner step `int`, counted from 0."""


@runtime_checkable
class Rule(Protocol):
    """A meta-learning rule.

    `meta_gradient` is a pure function of its arguments: the same one runs in the learner, under `torch.func.vmap`
    over a batch of episodes, and inside the attack that inverts it. `adapt` is what a learner does with the
    initialization at test time.

    A rule's class may say `stays_in_span = True`: for the weight that meets the images it moves along, and sends,
    nothing but gradients, whose rows lie in the span of the learner's images. No weight decay, no steps by signs.
    Learners are then computed faster where the model allows it, see `own_span`. A class derived from it must say so
    again.
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
