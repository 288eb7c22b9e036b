"""The adversary's own labelled images, drawn by class: what it simulates learners with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.observation import Observation


@dataclass(frozen=True)
class OwnImages:
    """Images `(N, C, H, W)` in [0, 1] and their classes `labels (N,)`, none of which a learner holds."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, observation: Observation) -> "OwnImages":
        """Return those of the observation; raises `ValueError` when it carries none."""
        if observation.own_images is None or observation.own_labels is None or not len(observation.own_labels):
            raise ValueError("needs the adversary's own images, which the observation does not carry")
        return cls(observation.own_images, observation.own_labels)

    def halves(self) -> tuple["OwnImages", "OwnImages"]:
        """Return two disjoint parts with half of every class each."""
        order = torch.argsort(self.labels, stable=True)
        first, second = order[::2], order[1::2]
        return OwnImages(self.images[first], self.labels[first]), OwnImages(self.images[second], self.labels[second])

    def draw(self, classes: Sequence[int], each: int, generator: torch.Generator) -> Tensor:
        """Return `each` images of every class in turn, `(len(classes), each, C, H, W)`.

        Within a class no image comes twice while there are enough. A class of which there is none is stood in for by
        another, drawn at random and the same throughout the call: learners' classes may all be strangers to the
        adversary.
        """
        known = sorted(set(self.labels.tolist()))
        strangers = [known[place] for place in torch.randperm(len(known), generator=generator).tolist()]
        rows = []
        for number, label in enumerate(classes):
            present = label if label in known else strangers[number % len(known)]
            pool = torch.nonzero(self.labels == present).flatten()
            places = torch.randperm(len(pool), generator=generator)
            rows.append(pool[places.repeat(-(-each // len(pool)))[:each]])
        return self.images[torch.stack(rows)]
