"""Means over examples under a defense of the place `example`, and the protocol of rules that use only these."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model, dense_input_of
from metaleak.clients.rules.rule import Rule, cross_entropy
from metaleak.defenses import CountsNorms, ExampleMechanism, RandomSource, Reading

_BYTES_AT_ONCE = 1 << 26
"""Most bytes of contributions of single examples that are held at a time."""


@dataclass(frozen=True)
class ReleasedMeans:
    """Takes means over examples as `mechanism` releases them, with noise from `source` by kind and step.

    Each example is computed by itself, so that its contribution does not depend on the others. Where the model's
    first layer is dense (`dense_input_of`), the contribution of one image x to that layer's weight is d x^T for some
    d, and d |x| is computed in its place: the same norm, and a sum over examples that is one matrix product.

    `shares` are patterns of the parameters that are sent: a mean that is sent as it is has no others.
    `falls` collects, from each mean, by how much an adaptive clipping norm should fall (`AdaptiveClip.fall`).
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
    ) -> Parameters:
        """Return the mean gradient of the cross-entropy in the parameters `names`, over `images (n, C, H, W)`."""

        def contribution(parameters: Parameters, image: Tensor, label: Tensor) -> Parameters:
            moving = {name: value for name, value in parameters.items() if name in names}
            found: Parameters = grad(
                lambda moving: cross_entropy(model, {**parameters, **moving}, image[None], label[None])
            )(moving)
            return found

        def contributions(examples: _Examples) -> Parameters:
            return vmap(lambda column, image, label: contribution(examples.with_column(column), image, label))(
                examples.columns(parameters), examples.inputs, examples.labels
            )

        return self._mean(model, parameters, images, labels, contributions, reading, step)

    def curvature(
        self,
        model: Model,
        parameters: Parameters,
        direction: Parameters,
        images: Tensor,
        labels: Tensor,
        step: int = 0,
    ) -> Parameters:
        """Return the mean Hessian of the cross-entropy times `direction`, over `images`; shaped like `parameters`.

        `direction` may lack parameters: it is 0 there.
        """
        full = {name: direction.get(name, torch.zeros_like(value)) for name, value in parameters.items()}

        def product(parameters: Parameters, direction: Parameters, image: Tensor, label: Tensor) -> Parameters:
            def slope(parameters: Parameters) -> Parameters:
                found: Parameters = grad(lambda one: cross_entropy(model, one, image[None], label[None]))(parameters)
                return found

            found: Parameters = jvp(slope, (parameters,), (direction,))[1]
            return found

        def contributions(examples: _Examples) -> Parameters:
            def one(column: Tensor, slant: Tensor, image: Tensor, label: Tensor) -> Parameters:
                return product(examples.with_column(column), {**full, **examples.named(slant)}, image, label)

            return vmap(one)(examples.columns(parameters), examples.columns(full), examples.inputs, examples.labels)

        return self._mean(model, parameters, images, labels, contributions, "curvature", step)

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
    ) -> list[Parameters]:
        """Return `parameters` and what each of `steps` of gradient descent makes of them; only `names` move."""
        moving = frozenset(parameters) if names is None else names
        trail = [parameters]
        for step in range(steps):
            mean = self.gradient(model, trail[-1], moving, images, labels, reading, step)
            trail.append(
                {name: value - rate * mean[name] if name in mean else value for name, value in trail[-1].items()}
            )
        return trail

    def _mean(
        self,
        model: Model,
        parameters: Parameters,
        images: Tensor,
        labels: Tensor,
        contributions: Callable[["_Examples"], Parameters],
        reading: Reading,
        step: int,
    ) -> Parameters:
        total: Parameters = {}
        sizes: list[Tensor] = []
        for examples in _chunks(model, parameters, images, labels):
            made = {name: value.detach() for name, value in contributions(examples).items()}
            norms = torch.stack([value.flatten(1).double().square().sum(1) for value in made.values()]).sum(0).sqrt()
            sizes.append(norms)
            weights = self.mechanism.weights(norms, reading)
            if not bool(torch.isfinite(norms).all()):
                # NaN times 0 is NaN.
                made = {name: value.nan_to_num(0.0, 0.0, 0.0) for name, value in made.items()}
            for name, value in made.items():
                part = examples.added_up(name, value, weights)
                total[name] = total[name] + part if name in total else part
        random = self.source(reading, step)
        mean = self.mechanism.noisy_mean(total, len(images), reading, random)
        if isinstance(self.mechanism, CountsNorms):
            fall = self.mechanism.clip_fall(torch.cat(sizes), reading, random)
            self.falls.extend([] if fall is None else [fall])
        return mean


@dataclass(frozen=True)
class _Examples:
    """Some examples as each is computed; with a dense first layer in the coordinate along its own image."""

    parameters: Parameters
    inputs: Tensor
    labels: Tensor
    weight: str | None = None
    along: Tensor | None = None

    def columns(self, parameters: Parameters) -> Tensor:
        """Return what the dense first layer of `parameters` is along each image, `(n, h)`, `(n, 0)` without one."""
        if self.weight is None or self.along is None:
            return self.inputs.new_zeros(len(self.inputs), 0, dtype=torch.float32)
        return self.along @ parameters[self.weight].mT

    def named(self, column: Tensor) -> Parameters:
        """Return the dense first layer of one example alone, `(h, 1)`; nothing without one."""
        return {} if self.weight is None else {self.weight: column[:, None]}

    def with_column(self, column: Tensor) -> Parameters:
        """Return the parameters as one example meets them."""
        return {**self.parameters, **self.named(column)}

    def added_up(self, name: str, contributions: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of `contributions (n, ...)` to one parameter, times their `weights (n,)`."""
        if name == self.weight and self.along is not None:
            return (contributions[..., 0] * weights.to(contributions.dtype)[:, None]).mT @ self.along
        total: Tensor = torch.tensordot(weights.to(contributions.dtype), contributions, dims=1)
        return total


def _chunks(model: Model, parameters: Parameters, images: Tensor, labels: Tensor) -> Iterator[_Examples]:
    """Yield the examples in parts whose contributions fit into `_BYTES_AT_ONCE`."""
    dense = dense_input_of(model)
    size = {name: value.numel() * value.element_size() for name, value in parameters.items()}
    inputs, along, weight = images, None, None
    if dense is not None:
        weight = dense.weight
        flat = dense.inputs(images)
        lengths = flat.norm(dim=1, keepdim=True)
        # An image of zeros, or with NaN, has no direction, and contributes nothing to this layer.
        along, inputs = (flat / lengths.clamp(min=1e-30)).nan_to_num(0.0, 0.0, 0.0), lengths
        size[weight] //= flat.shape[1]
    chunk = max(1, _BYTES_AT_ONCE // sum(size.values()))
    for start in range(0, len(images), chunk):
        some = slice(start, start + chunk)
        yield _Examples(parameters, inputs[some], labels[some], weight, None if along is None else along[some])


@runtime_checkable
class ReadsMeans(Protocol):
    """A rule that can be computed from means over examples alone, whatever is added to them."""

    @property
    def readings(self) -> Mapping[Reading, int]:
        """Return how many means of each kind one example can contribute to in one meta-gradient."""
        ...

    def released_meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, means: ReleasedMeans
    ) -> tuple[Parameters, Tensor]:
        """Return the meta-gradient, which depends on examples through `means` alone, and the loss, which does not.

        Nobody but the learner may see the loss.
        """
        ...


def reads_means(rule: Rule) -> ReadsMeans:
    """Return `rule`; raises `ValueError` in one line for one that cannot be computed from means over examples."""
    if not isinstance(rule, ReadsMeans):
        raise ValueError(
            f"rule: {type(rule).__name__} has no released_meta_gradient, which a defense of the place 'example' needs"
        )
    return rule
