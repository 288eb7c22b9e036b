"""The adversary's own labeled images, from which it draws the sets of simulated learners."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.observation import Observation


@dataclass(frozen=True)
class OwnExamples:
    """Images `(N, C, H, W)` in [0, 1], none of which a learner holds, and their classes `labels (N,)`."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, observation: Observation) -> "OwnExamples":
        """Return the own examples of the observation; raises `ValueError` if it has none."""
        if observation.own_examples is None or observation.own_labels is None or not len(observation.own_labels):
            raise ValueError(
                "observation.own_examples: the attack needs the adversary's own images and their labels, got none"
            )
        return cls(observation.own_examples, observation.own_labels)

    def parted(self) -> tuple["OwnExamples", "OwnExamples"]:
        """Return two disjoint parts: a third of every class, and the rest."""
        order = torch.argsort(self.labels, stable=True)
        third = torch.arange(len(order), device=order.device) % 3 == 0
        few, rest = order[third], order[~third]
        return OwnExamples(self.images[few], self.labels[few]), OwnExamples(self.images[rest], self.labels[rest])

    def least(self) -> int:
        """Return the number of images in the smallest class."""
        return int(torch.unique(self.labels, return_counts=True)[1].min())

    def present(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Return `classes (L, ways)` with classes of which there is no image replaced by others.

        The adversary may not have images of the learners' classes. A learner's replacement classes are drawn at
        random, and differ from each other and from its remaining classes if there are enough.
        """
        known = sorted(set(self.labels.tolist()))
        rows = []
        for row in classes.tolist():
            free = [label for label in known if label not in row] or known
            order = [free[place] for place in torch.randperm(len(free), generator=generator, device="cpu").tolist()]
            replacements = iter(order * len(row))
            rows.append([label if label in known else next(replacements) for label in row])
        return torch.tensor(rows, device=classes.device)

    def tasks(self, ways: int, count: int, generator: torch.Generator) -> Tensor:
        """Return the classes of `count` random tasks, `(count, ways)`, without repetition if there are enough."""
        known = torch.unique(self.labels)
        times = -(-ways // len(known))
        orders = [torch.randperm(len(known), generator=generator, device="cpu") for _ in range(count)]
        return torch.stack([known[order.to(known.device)].repeat(times)[:ways] for order in orders])

    def draw(self, classes: Tensor, each: int, generator: torch.Generator) -> Tensor:
        """Return `each` random images of every one of `classes (ways,)`, `(ways, each, C, H, W)`.

        Within a class no image is repeated if there are enough. There must be images of every class.
        """
        rows = []
        for label in classes.tolist():
            pool = torch.nonzero(self.labels == label).flatten()
            places = torch.randperm(len(pool), generator=generator, device="cpu").to(pool.device)
            rows.append(pool[places.repeat(-(-each // len(pool)))[:each]])
        return self.images[torch.stack(rows)]
