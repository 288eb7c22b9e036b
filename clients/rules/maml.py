"""MAML (Finn et al. 2017), its first-order form and ANIL."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.func import grad_and_value

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model, head_of
from metaleak.clients.rules.own_outputs import OwnOutputs
from metaleak.clients.rules.released_means import ReleasedMeans
from metaleak.clients.rules.rule import (
    InnerRate,
    InnerSteps,
    Perturb,
    SupportEntry,
    cross_entropy,
    inner_steps,
)
from metaleak.defenses import Reading


class MAML(BaseModel):
    """Model-agnostic meta-learning: the gradient of the query loss after adaptation (Finn et al. 2017).

    `order: 2` differentiates through the adaptation; `order: 1` uses the query gradient at the adapted parameters
    directly (FOMAML). With `adapts: head`, the inner loop updates only the classifier, the model's `head` (ANIL,
    Raghu et al. 2020); with a list of patterns, it updates the parameters whose names match. The outer loop updates
    all parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stays_in_span: ClassVar[bool] = True

    inner_steps: InnerSteps = 1
    inner_rate: InnerRate = 0.4
    order: Literal[1, 2] = 2
    adapts: Literal["all", "head"] | tuple[str, ...] = "all"

    @property
    def support_enters(self) -> SupportEntry:
        """Through the Hessian for order 2, else through the adapted parameters alone."""
        return "curvature" if self.order == 2 else "parameters"

    def adapted_names(self, model: Model, parameters: Parameters) -> frozenset[str]:
        """Return the names of the parameters that the inner loop updates."""
        if isinstance(self.adapts, tuple):
            return frozenset(name for name in parameters if any(fnmatchcase(name, one) for one in self.adapts))
        return frozenset(parameters if self.adapts == "all" else head_of(model))

    def adapt(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        """Return the parameters after adaptation to the episode's support set."""
        return inner_steps(
            model,
            parameters,
            episode.support_inputs,
            episode.support_labels,
            self.inner_steps,
            self.inner_rate,
            names=self.adapted_names(model, parameters),
            perturb=perturb,
        )

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, Tensor]:
        """Return the meta-gradient, shaped like `parameters`, and the query loss after adaptation.

        Order 2: d/dw L(adapt(w); query). Order 1: d/dtheta L(theta; query) at theta = adapt(w). Noise added by
        `perturb` is part of the differentiated function, as a constant.
        """

        def query_loss(adapted: Parameters) -> Tensor:
            return cross_entropy(model, adapted, episode.query_inputs, episode.query_labels)

        def loss_after_adaptation(parameters: Parameters) -> Tensor:
            return query_loss(self.adapt(model, parameters, episode, perturb))

        if self.order == 2:
            gradient, loss = grad_and_value(loss_after_adaptation)(parameters)
        else:
            gradient, loss = grad_and_value(query_loss)(self.adapt(model, parameters, episode, perturb))
        return gradient, loss

    @property
    def readings(self) -> Mapping[Reading, int]:
        """Per inner step a mean over the support set (order 2: one more for its derivative); one over the queries."""
        first_order: dict[Reading, int] = {"support": self.inner_steps, "query": 1}
        return {**first_order, "curvature": self.inner_steps} if self.order == 2 else first_order

    def released_meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, means: ReleasedMeans
    ) -> tuple[Parameters, Tensor]:
        """Return the meta-gradient from `means` alone, and the query loss after adaptation.

        Order 1 only post-processes the adapted parameters. Order 2 does not: d theta'/d theta = 1 - rate H(theta)
        contains the Hessian of the support set, which reads its examples again. So each product with H is a separate
        mean over the examples' Hessians, taken backward from the last step: one more mechanism on the support set per
        step.
        """
        names = self.adapted_names(model, parameters)
        # The inner steps' weights are used at the episode's images alone, and not sent.
        own = OwnOutputs.of(means.mechanism, model, parameters, names, episode)
        support = own.episode.support_inputs, episode.support_labels
        query = own.episode.query_inputs, episode.query_labels
        start = own.outputs(parameters)
        trail = means.descent(model, start, *support, self.inner_steps, self.inner_rate, "support", names, own)
        # Only order 2 uses the gradients of parameters that are not sent.
        sent = frozenset(parameters) if self.order == 2 else means.shared(parameters)
        gradient, loss = means.gradient_and_loss(
            model, trail[-1], sent, *query, "query", product_inputs=own.query_images
        )
        for step in reversed(range(self.inner_steps if self.order == 2 else 0)):
            moved = own.support_outputs({name: value for name, value in gradient.items() if name in names})
            product = means.curvature(model, trail[step], moved, *support, step, own.support_images)
            gradient = {
                name: torch.add(value, product[name], alpha=-self.inner_rate) for name, value in gradient.items()
            }
        return gradient, loss


def first_order_maml(inner_steps: int = 1, inner_rate: float = 0.4) -> MAML:
    """Return first-order MAML (FOMAML), which ignores the Hessian."""
    return MAML(inner_steps=inner_steps, inner_rate=inner_rate, order=1)


def anil(inner_steps: int = 1, inner_rate: float = 0.4) -> MAML:
    """Return ANIL ("almost no inner loop"), which adapts only the classifier."""
    return MAML(inner_steps=inner_steps, inner_rate=inner_rate, adapts="head")
