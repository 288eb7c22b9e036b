"""The examples of a study: the pool, the half of it that each model is trained on, and the downstream task."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from metaleak.clients.datasets import LabeledExamples
from metaleak.clients.randomness import keyed_generator
from metaleak.deploy.pretraining.study import Source, Study


@dataclass(frozen=True, eq=False)
class Chosen:
    """Examples: `inputs (N, ...)`, `labels (N,)` int64 in [0, `ways`), `places (N,)` in the data."""

    inputs: Tensor
    labels: Tensor
    ways: int
    places: Tensor


@dataclass(frozen=True, eq=False)
class Scale:
    """Scales images to mean 0 and standard deviation 1 per channel; `mean` and `deviation` are `(C, 1, 1)`."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return `inputs (B, C, H, W)` scaled."""
        return (inputs - self.mean.to(inputs)) / self.deviation.to(inputs)


def pool_of(study: Study) -> Chosen:
    """Return the pool that models are pretrained on."""
    return _chosen(study.pool, study.seed, "pool")


def downstream_of(study: Study) -> Chosen:
    """Return the examples that models are finetuned on."""
    return _chosen(study.downstream, study.seed, "downstream")


def members(study: Study, model: int) -> Tensor:
    """Return the places `(n // 2,)` in the pool of n that model number `model` is pretrained on, ascending."""
    count = len(pool_of(study).labels)
    order = torch.randperm(count, generator=keyed_generator(study.seed, "members", model))
    return order[: count // 2].sort().values


def points(study: Study) -> Tensor:
    """Return the places in the pool that are asked about, drawn without regard to class."""
    count = len(pool_of(study).labels)
    order = torch.randperm(count, generator=keyed_generator(study.seed, "points"))
    return order[: study.points].sort().values


def scale_of(study: Study) -> Scale | None:
    """Return how images are scaled before they enter a model; `None` if they are not scaled, or for tokens."""
    inputs = pool_of(study).inputs
    if not study.standardized or not inputs.is_floating_point():
        return None
    axes = (0, 2, 3)
    deviation = inputs.std(dim=axes).clamp(min=1e-6)
    return Scale(inputs.mean(dim=axes)[:, None, None], deviation[:, None, None])


@lru_cache(maxsize=4)
def _chosen(source: Source, seed: int, purpose: str) -> Chosen:
    data: LabeledExamples = source.data.built("datasets").load()
    labels = data.labels
    places = torch.arange(len(labels))
    if source.classes is not None:
        unknown = [one for one in source.classes if one >= len(data.classes)]
        if unknown:
            raise ValueError(f"{purpose}.classes: {unknown[0]} is not one of the {len(data.classes)} classes")
        renamed = torch.full((len(data.classes),), -1)
        renamed[torch.tensor(source.classes)] = torch.arange(len(source.classes))
        labels = renamed[labels]
        places = places[labels >= 0]
    wanted = len(places) if source.examples is None else source.examples
    if wanted > len(places):
        raise ValueError(f"{purpose}.examples: must be at most the {len(places)} of these classes, got {wanted}")
    order = torch.randperm(len(places), generator=keyed_generator(seed, purpose))
    places = places[order[:wanted]]
    ways = len(data.classes) if source.classes is None else len(source.classes)
    inputs, chosen = data.inputs(places), labels[places]
    if source.rotations > 1:
        if data.modality != "image" or inputs.shape[-1] != inputs.shape[-2]:
            raise ValueError(f"{purpose}.rotations: are for square images")
        turns = [4 // source.rotations * turn for turn in range(source.rotations)]
        inputs = torch.cat([inputs.rot90(turn, (2, 3)) for turn in turns])
        chosen = torch.cat([chosen + ways * number for number in range(source.rotations)])
        places, ways = places.repeat(source.rotations), ways * source.rotations
    return Chosen(inputs, chosen, ways, places)
