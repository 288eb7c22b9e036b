"""Means over examples under a defense of the place `example`, and the protocol of rules that use only such means."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import grad_and_value, jvp

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model, dense_layers_of
from metaleak.clients.rules.contributions import NO_INPUTS, Contributions, OuterProducts, Whole
from metaleak.clients.rules.own_outputs import OwnOutputs
from metaleak.clients.rules.rule import Rule, cross_entropy
from metaleak.defenses import CountsNorms, ExampleMechanism, RandomSource, Reading


@dataclass(frozen=True)
class ReleasedMeans:
    """Computes means over examples as released by `mechanism`, with noise from `source` for each kind and step.

    Each example is computed separately, so that its contribution does not depend on the others. If the model
    guarantees this itself and consists of dense layers (`dense_layers_of`), contributions are never formed
    explicitly (`OuterProducts`).

    `shares` are patterns for the names of the parameters that are sent; a mean that is sent without further
    computation contains only these parameters. `falls` collects, from each mean, the amount by which the logarithm
    of an adaptive clipping norm should decrease (`AdaptiveClip.fall`).
    """

    mechanism: ExampleMechanism
    source: Callable[[Reading, int], RandomSource]
    shares: tuple[str, ...] = ("*",)
    falls: list[float] = field(default_factory=list)

    def shared(self, parameters: Parameters) -> frozenset[str]:
        """Return the names of the parameters that are shared."""
        return frozenset(name for name in parameters if any(fnmatchcase(name, one) for one in self.shares))

    def gradient(
        self,
        model: Model,
        parameters: Parameters,
        names: frozenset[str],
        images: Tensor,
        labels: Tensor,
        reading: Reading,
        step: int = 0,
        product_inputs: Mapping[str, Tensor] = NO_INPUTS,
    ) -> Parameters:
        """Return the mean gradient of the cross-entropy in the parameters `names`, over `images (n, C, H, W)`.

        `product_inputs` may have, by the name of a dense first layer's weight, what replaces its inputs `(n, ...)` in
        the gradient.
        """
        return self.gradient_and_loss(model, parameters, names, images, labels, reading, step, product_inputs)[0]

    def gradient_and_loss(
        self,
        model: Model,
        parameters: Parameters,
        names: frozenset[str],
        images: Tensor,
        labels: Tensor,
        reading: Reading,
        step: int = 0,
        product_inputs: Mapping[str, Tensor] = NO_INPUTS,
    ) -> tuple[Parameters, Tensor]:
        """Return the result of `gradient` and the mean cross-entropy, a scalar without noise: never send it."""
        layers = dense_layers_of(model)
        if layers is not None:
            products = OuterProducts.of(
                model, layers, parameters, names, images, labels, product_inputs=product_inputs
            )
            return self._mean([products], len(images), reading, step), products.loss

        def contribution(
            parameters: Parameters, _: Parameters, image: Tensor, label: Tensor
        ) -> tuple[Parameters, Tensor]:
            moving = {name: value for name, value in parameters.items() if name in names}
            found: tuple[Parameters, Tensor] = grad_and_value(
                lambda moving: cross_entropy(model, {**parameters, **moving}, image[None], label[None])
            )(moving)
            return found

        losses: list[Tensor] = []

        def parts() -> Iterator[Whole]:
            for part in Whole.each(model, parameters, images, labels, {}, contribution, product_inputs):
                losses.append(part.losses)
                yield part

        mean = self._mean(parts(), len(images), reading, step)
        return mean, torch.cat(losses).mean()

    def curvature(
        self,
        model: Model,
        parameters: Parameters,
        direction: Parameters,
        images: Tensor,
        labels: Tensor,
        step: int = 0,
        product_inputs: Mapping[str, Tensor] = NO_INPUTS,
    ) -> Parameters:
        """Return the mean Hessian of the cross-entropy times `direction`, over `images`; shaped like `parameters`.

        Parameters missing from `direction` count as 0. `product_inputs` is that of `gradient`.
        """
        full = {name: direction.get(name, torch.zeros_like(value)) for name, value in parameters.items()}

        def product(
            parameters: Parameters, direction: Parameters, image: Tensor, label: Tensor
        ) -> tuple[Parameters, Tensor]:
            def slope(parameters: Parameters) -> tuple[Parameters, Tensor]:
                found: tuple[Parameters, Tensor] = grad_and_value(
                    lambda one: cross_entropy(model, one, image[None], label[None])
                )(parameters)
                return found

            found: Any = jvp(slope, (parameters,), (direction,), has_aux=True)
            return found[1], found[2]

        layers = dense_layers_of(model)
        parts: Iterable[Contributions]
        if layers is None:
            parts = Whole.each(model, parameters, images, labels, full, product, product_inputs)
        else:
            names = frozenset(parameters)
            parts = [OuterProducts.of(model, layers, parameters, names, images, labels, full, product_inputs)]
        return self._mean(parts, len(images), "curvature", step)

    def descent(
        self,
        model: Model,
        parameters: Parameters,
        images: Tensor,
        labels: Tensor,
        steps: int,
        rate: float,
        reading: Reading,
        names: frozenset[str] | None = None,
        own: OwnOutputs | None = None,
    ) -> list[Parameters]:
        """Return `parameters` before and after each of `steps` of gradient descent; only `names` are updated.

        With `own`, which has these images as its support set, `parameters` are its `outputs`.
        """
        moving = frozenset(parameters) if names is None else names
        trail = [parameters]
        for step in range(steps):
            product_inputs = NO_INPUTS if own is None else own.support_coordinates
            mean = self.gradient(model, trail[-1], moving, images, labels, reading, step, product_inputs)
            mean = mean if own is None else own.outputs_of_mean(mean)
            trail.append(
                {
                    name: torch.add(value, mean[name], alpha=-rate) if name in mean else value
                    for name, value in trail[-1].items()
                }
            )
        return trail

    def _mean(self, parts: Iterable[Contributions], count: int, reading: Reading, step: int) -> Parameters:
        total: Parameters = {}
        sizes: list[Tensor] = []
        for some in parts:
            norms = some.norms
            sizes.append(norms)
            for name, part in some.added_up(self.mechanism.weights(norms, reading)).items():
                total[name] = total[name] + part if name in total else part
        random = self.source(reading, step)
        mean = self.mechanism.noisy_mean(total, count, reading, random)
        if isinstance(self.mechanism, CountsNorms):
            fall = self.mechanism.clip_fall(torch.cat(sizes), reading, random)
            self.falls.extend([] if fall is None else [fall])
        return mean


@runtime_checkable
class ReadsMeans(Protocol):
    """A rule that can be computed from means over examples alone, whatever noise is added to them."""

    @property
    def readings(self) -> Mapping[Reading, int]:
        """The number of means of each kind that one example can contribute to in one meta-gradient."""
        ...

    def released_meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, means: ReleasedMeans
    ) -> tuple[Parameters, Tensor]:
        """Return the meta-gradient and the loss; only the meta-gradient depends on examples through `means` alone.

        The loss must not leave the learner.
        """
        ...


def reads_means(rule: Rule) -> ReadsMeans:
    """Return `rule`; raises a one-line `ValueError` if it cannot be computed from means over examples alone."""
    if not isinstance(rule, ReadsMeans):
        raise ValueError(
            f"rule: {type(rule).__name__} has no released_meta_gradient, which a defense of the place 'example' needs"
        )
    return rule
