"""Finetuning of pretrained models into released ones: a new classifier, alone or with the whole network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.pretraining.training import features, linear_head, train
from metaleak.clients.episode import Parameters
from metaleak.clients.models import MLP, Decoupled, Model
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import ReleasedMeans
from metaleak.defenses import RandomSource, RecordLevel
from metaleak.deploy.pretraining.examples import Scale
from metaleak.deploy.pretraining.study import Finetuning, PrivateSteps

_REFERENCE = 1000
_AT_ONCE = 1000

_HEAD = MLP(hidden=())
"""The classifier alone, a model of features instead of images."""


@dataclass(frozen=True, eq=False)
class ReleasedModel:
    """A `Query` of a model: probabilities for unscaled inputs, which it scales itself.

    It computes on the device of its parameters, 1 000 inputs at once.
    """

    _model: Model
    _parameters: Parameters
    _scale: Scale | None = None

    def predict(self, inputs: Tensor, /) -> Tensor:
        """Return the probabilities `(B, K)` float64, on the CPU, for `inputs (B, ...)`."""
        return torch.cat([self._answers(some) for some in torch.split(inputs, _AT_ONCE)])

    def _answers(self, inputs: Tensor) -> Tensor:
        given = inputs.to(next(iter(self._parameters.values())).device)
        with torch.no_grad():
            logits = self._model(self._parameters, given if self._scale is None else self._scale(given))
        return logits.double().softmax(dim=1).cpu()


def with_statistics(model: Model, parameters: Parameters, reference: Tensor) -> Model:
    """Return the model with batch-norm statistics fixed to those of the first 1 000 of `reference (B, ...)`."""
    return model.decoupled(parameters, reference[:_REFERENCE]) if isinstance(model, Decoupled) else model


def finetuned(
    model: Model,
    pretrained: Sequence[Parameters],
    references: Sequence[Tensor],
    inputs: Tensor,
    labels: Tensor,
    ways: int,
    finetuning: Finetuning,
    keys: Sequence[tuple[int | str, ...]],
) -> list[tuple[Model, Parameters]]:
    """Finetune each of M `pretrained` models on its part of `inputs (N, ...)`, `labels (N,)`, and return the results.

    `references` are inputs that each model was pretrained on, for the statistics of batch normalization; `keys` are
    the keys of the models' random numbers. If only the classifier is trained, its features are computed once. The
    computation runs on the device of `inputs`.
    """
    device = inputs.device
    count = max(1, round(finetuning.part * len(labels)))
    generators = [keyed_generator(*key, "finetuning") for key in keys]
    places = torch.stack([torch.randperm(len(labels), generator=one)[:count] for one in generators])
    starts = [
        with_new_head(model, one, tuple(inputs.shape[1:]), ways, generator)
        for one, generator in zip(pretrained, generators, strict=True)
    ]
    if finetuning.statistics == "finetuning":
        references = [inputs[own.to(device)] for own in places]
    if finetuning.moves == "all":
        if finetuning.private is None:
            moved = train(model, starts, inputs, labels, places, finetuning.training, generators)
        else:
            moved = [
                privately(model, start, inputs[own.to(device)], labels[own.to(device)], finetuning.private, key)
                for start, own, key in zip(starts, places, keys, strict=True)
            ]
        return [
            (with_statistics(model, one, reference), one) for one, reference in zip(moved, references, strict=True)
        ]
    fixed = [with_statistics(model, one, reference) for one, reference in zip(starts, references, strict=True)]
    weight, bias = head = linear_head(model, starts[0])
    heads = [{"head.weight": start[weight], "head.bias": start[bias]} for start in starts]
    seen = torch.stack([features(own, one, head, inputs) for own, one in zip(fixed, starts, strict=True)])
    seen = seen[..., None, None]
    if finetuning.private is None:
        trained = train(_HEAD, heads, seen, labels, places, finetuning.training, generators, each_its_own=True)
    else:
        trained = [
            privately(_HEAD, start, one[own.to(device)], labels[own.to(device)], finetuning.private, key)
            for start, one, own, key in zip(heads, seen, places, keys, strict=True)
        ]
    return [
        (own, {**start, weight: end["head.weight"], bias: end["head.bias"]})
        for own, start, end in zip(fixed, starts, trained, strict=True)
    ]


def with_new_head(
    model: Model, pretrained: Parameters, input_shape: tuple[int, ...], ways: int, generator: torch.Generator
) -> Parameters:
    """Return the parameters with a fresh classifier of `ways` classes."""
    fresh = model.initialize(input_shape, ways, generator)
    head = linear_head(model, fresh)
    return {name: fresh[name].to(value.device) if name in head else value for name, value in pretrained.items()}


def mechanism(steps: PrivateSteps) -> RecordLevel:
    """Return the Gaussian mechanism of each step: all of them together cost `epsilon` at `delta`."""
    if steps.epsilon is None:
        return RecordLevel(
            noise_multiplier=steps.noise_multiplier, clip=steps.clip, delta=steps.delta, readings={"all": steps.steps}
        )
    return RecordLevel(
        epsilon=steps.epsilon, delta=steps.delta, clip=steps.clip, releases=1, readings={"all": steps.steps}
    )


def privately(
    model: Model, start: Parameters, inputs: Tensor, labels: Tensor, steps: PrivateSteps, key: tuple[int | str, ...]
) -> Parameters:
    """Return `start` after private steps over all of `inputs (n, ...)`, each example clipped, noise on the mean."""
    means = ReleasedMeans(mechanism(steps), lambda reading, step: RandomSource.of(*key, reading, step))
    return means.descent(model, start, inputs, labels, steps.steps, steps.rate, "all")[-1]
