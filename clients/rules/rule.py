"""The protocol for meta-learning rules, and the gradient descent shared by all rules."""

from collections.abc import Callable
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.func import grad

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules.uncompiled import leave_compiler_out

leave_compiler_out()

InnerSteps = Annotated[int, Field(ge=1, le=100)]
InnerRate = Annotated[float, Field(gt=0, le=100)]

Perturb = Callable[[Parameters, int], Parameters]
"""Applies a defense to a gradient; the second argument is the number of the inner step, from 0."""

SupportEntry = Literal["direct", "curvature", "parameters"]
"""How the support set enters what is shared.

- `direct`: in the same way as the query set; the gradients of all examples are summed (Reptile, FedSGD, FedAvg).
- `curvature`: through the Hessian of its loss, because the adaptation is differentiated (second-order MAML, ANIL).
- `parameters`: only through the adapted parameters, at which the query gradient is taken (first-order MAML).
"""


@runtime_checkable
class Rule(Protocol):
    """A meta-learning rule.

    `meta_gradient` is a pure function of its arguments: the same function runs in the learner, under
    `torch.func.vmap` over a batch of episodes, and inside the attack that inverts it. `adapt` is the learner's
    adaptation of the initialization at test time.

    The class attribute `stays_in_span = True` is optional. It guarantees that the weight which multiplies the images
    is updated only along gradients, and that only gradients are sent for it, so that their rows lie in the span of
    the learner's images. This excludes weight decay and sign-based steps. Learners are then computed faster where the
    model allows it (see `own_span`). A derived class must set the attribute again.

    Attacks query a rule with `support_entry`, `adapted_names` and `outer_point`. A rule for which the defaults of
    these functions do not hold defines the members `support_enters`, `adapted_names` and `outer_point`.
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


@runtime_checkable
class StatesSupportEntry(Protocol):
    """A rule that states how its support set enters what is shared."""

    @property
    def support_enters(self) -> SupportEntry:
        """How the support set enters."""
        ...


@runtime_checkable
class AdaptsSome(Protocol):
    """A rule that does not adapt all parameters."""

    def adapted_names(self, model: Model, parameters: Parameters) -> frozenset[str]:
        """Return the names of the parameters that it adapts."""
        ...


@runtime_checkable
class StatesOuterPoint(Protocol):
    """A rule that evaluates the gradients of its query set at parameters other than the adapted ones."""

    def outer_point(self, model: Model, parameters: Parameters, episode: Episode) -> Parameters:
        """Return the parameters at which the gradients are evaluated; their mean if there are several."""
        ...


@runtime_checkable
class TakesBack(Protocol):
    """A rule that subtracts a fraction of the query set's gradient at the sent parameters."""

    @property
    def taken_back(self) -> float:
        """The fraction that is subtracted."""
        ...


def support_entry(rule: Rule) -> SupportEntry:
    """Return how the support set enters what `rule` shares; `"parameters"` if the rule does not state it."""
    return rule.support_enters if isinstance(rule, StatesSupportEntry) else "parameters"


def adapted_names(rule: Rule, model: Model, parameters: Parameters) -> frozenset[str]:
    """Return the names of the parameters that `rule` adapts; all names if the rule does not state them."""
    return rule.adapted_names(model, parameters) if isinstance(rule, AdaptsSome) else frozenset(parameters)


def outer_point(rule: Rule, model: Model, parameters: Parameters, episode: Episode) -> Parameters:
    """Return the parameters at which `rule` evaluates the query set's gradients, by default the adapted ones."""
    if isinstance(rule, StatesOuterPoint):
        return rule.outer_point(model, parameters, episode)
    return rule.adapt(model, parameters, episode)


def taken_back(rule: Rule) -> float:
    """Return the fraction of the query set's gradient at the sent parameters that `rule` subtracts; 0 by default."""
    return rule.taken_back if isinstance(rule, TakesBack) else 0.0


def all_examples(episode: Episode) -> tuple[Tensor, Tensor]:
    """Return the images and the labels of the support and query set, concatenated.

    If the labels of one set are class probabilities and those of the other are class positions, all are converted to
    probabilities.
    """
    labels = [episode.support_labels, episode.query_labels]
    soft = [one for one in labels if one.is_floating_point()]
    if len(soft) == 1:
        ways = soft[0].shape[-1]
        labels = [one if one.is_floating_point() else F.one_hot(one, ways).to(soft[0].dtype) for one in labels]
    return torch.cat([episode.support_inputs, episode.query_inputs]), torch.cat(labels)


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

    Only the parameters `names` are updated (all when `None`). `perturb` is applied to each step's gradient before the
    update. Differentiable with respect to every input.
    """
    fixed = {name: value for name, value in parameters.items() if names is not None and name not in names}
    moving = {name: value for name, value in parameters.items() if name not in fixed}

    def loss(moving: Parameters) -> Tensor:
        return cross_entropy(model, {**fixed, **moving}, images, labels)

    def descent(moving: Parameters) -> Tensor:
        return -rate * loss(moving)

    for step in range(steps):
        if perturb is None:
            # The rate multiplies the scalar loss instead of every gradient: large networks are limited by memory
            # traffic.
            update: Parameters = grad(descent)(moving)
        else:
            update = {name: -rate * value for name, value in perturb(grad(loss)(moving), step).items()}
        moving = {name: value + update[name] for name, value in moving.items()}
    return {name: fixed[name] if name in fixed else moving[name] for name in parameters}
