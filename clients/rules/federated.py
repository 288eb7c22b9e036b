"""Ordinary federated learning: FedSGD and FedAvg (McMahan et al. 2017), with support and query set merged."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.func import grad_and_value

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules.released_means import ReleasedMeans
from metaleak.clients.rules.rule import (
    InnerRate,
    InnerSteps,
    Perturb,
    SupportEntry,
    all_examples,
    cross_entropy,
    inner_steps,
)
from metaleak.defenses import Reading


class FedSGD(BaseModel):
    """FedSGD: the gradient of the mean loss over all of a learner's examples at the parameters the server sent.

    Nothing is adapted during training. `inner_steps` and `inner_rate` are used only by `adapt`, the fine-tuning at
    test time. A defense of inner gradients is applied to the one gradient.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stays_in_span: ClassVar[bool] = True

    inner_steps: InnerSteps = 1
    inner_rate: InnerRate = 0.4

    @property
    def support_enters(self) -> SupportEntry:
        """Both sets are one."""
        return "direct"

    def adapted_names(self, model: Model, parameters: Parameters) -> frozenset[str]:
        """Return the empty set: what is shared does not depend on any adaptation."""
        return frozenset()

    def adapt(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        """Return the parameters after gradient descent on the episode's support set."""
        images, labels = episode.support_inputs, episode.support_labels
        return inner_steps(model, parameters, images, labels, self.inner_steps, self.inner_rate, perturb=perturb)

    def outer_point(self, model: Model, parameters: Parameters, episode: Episode) -> Parameters:
        """Return the parameters the server sent."""
        return parameters

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, Tensor]:
        """Return the gradient over support and query set together, shaped like `parameters`, and the loss."""
        images, labels = all_examples(episode)

        def loss(parameters: Parameters) -> Tensor:
            return cross_entropy(model, parameters, images, labels)

        gradient, value = grad_and_value(loss)(parameters)
        return gradient if perturb is None else perturb(gradient, 0), value

    @property
    def readings(self) -> Mapping[Reading, int]:
        """One mean over all examples."""
        return {"all": 1}

    def released_meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, means: ReleasedMeans
    ) -> tuple[Parameters, Tensor]:
        """Return the released mean over support and query set together, and the loss."""
        images, labels = all_examples(episode)
        return means.gradient_and_loss(model, parameters, frozenset(parameters), images, labels, "all")


class FedAvg(BaseModel):
    """FedAvg: `epochs` of local SGD on all of a learner's examples, in batches of `batch` (`null`: all at once).

    A learner shares (w - theta) / rate, where theta are its local weights: the sum of the local gradients, as in
    Reptile. Outer SGD with learning rate `rate` then computes the plain average of the learners' weights. One
    full-batch epoch gives the same result as FedSGD, and k full-batch epochs the same as Reptile with k inner steps.

    Nothing is shuffled, because a rule is a pure function: examples are assigned to the batches of an epoch in turn,
    support set before query set, so that each batch gets examples of many classes and sizes differ by at most one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stays_in_span: ClassVar[bool] = True

    epochs: InnerSteps = 1
    batch: Annotated[int, Field(ge=1)] | None = None
    rate: InnerRate = 0.1

    @property
    def support_enters(self) -> SupportEntry:
        """Both sets are one."""
        return "direct"

    def adapt(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        """Return the local weights after training on the episode's support set alone."""
        *_, local = self._trail(model, parameters, episode.support_inputs, episode.support_labels, perturb)
        return local

    def outer_point(self, model: Model, parameters: Parameters, episode: Episode) -> Parameters:
        """Return the mean of the weights at which the local gradients are taken."""
        *places, _ = self._trail(model, parameters, *all_examples(episode))
        return {name: torch.stack([place[name] for place in places]).mean(dim=0) for name in parameters}

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, Tensor]:
        """Return (w - theta) / rate, shaped like `parameters`, and the loss on all examples at theta."""
        images, labels = all_examples(episode)
        *_, local = self._trail(model, parameters, images, labels, perturb)
        return self._shared(parameters, local), cross_entropy(model, local, images, labels)

    @property
    def readings(self) -> Mapping[Reading, int]:
        """One mean per epoch, over all examples or over the batch that contains the example."""
        return {"all" if self.batch is None else "batch": self.epochs}

    def released_meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, means: ReleasedMeans
    ) -> tuple[Parameters, Tensor]:
        """Return the sum of the released means of all batches, and the loss on all examples at theta."""
        images, labels = all_examples(episode)
        (reading,), local = self.readings, parameters
        for step, some in enumerate(self._batches(len(images))):
            mean = means.gradient(model, local, frozenset(local), images[some], labels[some], reading, step)
            local = {name: value - self.rate * mean[name] for name, value in local.items()}
        return self._shared(parameters, local), cross_entropy(model, local, images, labels)

    def _shared(self, parameters: Parameters, local: Parameters) -> Parameters:
        return {name: (value - local[name]) / self.rate for name, value in parameters.items()}

    def _batches(self, count: int) -> Iterator[slice]:
        """Yield which of `count` examples each local step takes."""
        batches = 1 if self.batch is None else -(-count // self.batch)
        for step in range(self.epochs * batches):
            yield slice(step % batches, None, batches)

    def _trail(
        self, model: Model, parameters: Parameters, images: Tensor, labels: Tensor, perturb: Perturb | None = None
    ) -> Iterator[Parameters]:
        """Yield the weights before the first local step and after each."""
        yield parameters
        for step, some in enumerate(self._batches(len(images))):
            numbered = None if perturb is None else _numbered(perturb, step)
            parameters = inner_steps(model, parameters, images[some], labels[some], 1, self.rate, perturb=numbered)
            yield parameters


def _numbered(perturb: Perturb, step: int) -> Perturb:
    """Return `perturb` for the one gradient of local step `step`."""
    return lambda gradient, _: perturb(gradient, step)
