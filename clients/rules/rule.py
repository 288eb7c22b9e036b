"""The protocol of a meta-learning rule, and the gradient descent that all rules share."""

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
"""Applies a defense to the gradient of the inner step of this number, counted from 0."""

SupportEntry = Literal["direct", "curvature", "parameters"]
"""How the support set enters what is shared.

- `direct`: as the query set does; the gradients of all examples are summed (Reptile, FedSGD, FedAvg).
- `curvature`: by the Hessian of its loss, for the adaptation is differentiated (second-order MAML, ANIL).
- `parameters`: by the adapted parameters alone, at which the query gradient is taken (first-order MAML).
"""


@runtime_checkable
class Rule(Protocol):
    """A meta-learning rule.

    `meta_gradient` is a pure function of its arguments: the same one runs in the learner, under `torch.func.vmap`
    over a batch of episodes, and inside the attack that inverts it. `adapt` is what a learner does with the
    initialization at test time.

    The class attribute `stays_in_span = True` is optional. It promises that the weight which multiplies the images
    moves only along gradients, and that only gradients are sent for it: their rows lie in the span of the learner's
    images. This excludes weight decay and steps by signs. Learners are then computed faster where the model allows
    it, see `own_span`. A derived class must set the attribute again.

    What attacks may ask of a rule, `support_entry`, `adapted_names` and `outer_point`, it states in members of these
    names where the default of these functions does not hold.
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
    """A rule that takes the gradients of its query set elsewhere than at the adapted parameters."""

    def outer_point(self, model: Model, parameters: Parameters, episode: Episode) -> Parameters:
        """Return the parameters at which it takes them for this episode; the mean, where there are several."""
        ...


@runtime_checkable
class TakesBack(Protocol):
    """A rule that subtracts a fraction of the query set's gradient at the sent parameters."""

    @property
    def taken_back(self) -> float:
        """The fraction that is taken away."""
        ...


def support_entry(rule: Rule) -> SupportEntry:
    """Return how the support set enters what `rule` shares; `parameters` for a rule that does not state it."""
    return rule.support_enters if isinstance(rule, StatesSupportEntry) else "parameters"


def adapted_names(rule: Rule, model: Model, parameters: Parameters) -> frozenset[str]:
    """Return the names of the parameters that `rule` adapts; all for a rule that does not state it."""
    return rule.adapted_names(model, parameters) if isinstance(rule, AdaptsSome) else frozenset(parameters)


def outer_point(rule: Rule, model: Model, parameters: Parameters, episode: Episode) -> Parameters:
    """Return the parameters at which `rule` takes the gradients of query examples; the adapted ones by default."""
    if isinstance(rule, StatesOuterPoint):
        return rule.outer_point(model, parameters, episode)
    return rule.adapt(model, parameters, episode)


def taken_back(rule: Rule) -> float:
    """Return the fraction of the query set's gradient at the sent parameters that `rule` subtracts; 0 by default."""
    return rule.taken_back if isinstance(rule, TakesBack) else 0.0


def all_examples(episode: Episode) -> tuple[Tensor, Tensor]:
    """Return the support and the query set as one, images and labels.

    Where the labels of one set are class probabilities and those of the other positions, all become probabilities.
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
            # The rate multiplies the loss, a scalar, and not every gradient: large networks are limited by memory
            # traffic.
            update: Parameters = grad(descent)(moving)
        else:
            update = {name: -rate * value for name, value in perturb(grad(loss)(moving), step).items()}
        moving = {name: value + update[name] for name, value in moving.items()}
    return {name: fixed[name] if name in fixed else moving[name] for name in parameters}
