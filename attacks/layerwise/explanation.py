"""Which recovered examples explain what a learner sent, so that they are what it held.

A first layer's gradient has many factors besides the true one, and convex sums of images look like images. The other
layers tell them apart: the right examples, with the right labels and in the right sets, have the meta-gradient that
was sent, to within rounding. Labels and sets are not known; they are found by exchanging two examples as long as the
meta-gradient comes nearer.

How precisely this confirms an example depends on what it contributes. One that the network classifies with certainty
has next to no gradient, and others like it could stand in its place: so each is moved a little, and is confirmed
only where that changes the meta-gradient by far more than the residual.
"""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Self

import torch
from torch import Tensor

from metaleak.attacks.observation import Observation
from metaleak.attacks.seeding import generator_for
from metaleak.clients.episode import Episode
from metaleak.clients.rules import batch_meta_gradients

_EXPLAINED = 1e-3
"""The residual up to which a meta-gradient is explained: float32 leaves 1e-6, a wrong image more than 1e-2."""

_MOVED = 0.1
"""By what part of its distance from gray an example is moved to see what it contributes."""

_CONFIRMED = 10.0
"""How many residuals that must change for the example to be confirmed, to about one per cent of its distance."""

_ROUNDING = 1e-6
"""The least residual that is counted on: what float32 leaves may be smaller by chance."""

_STARTS = 6
"""Random arrangements from which the search begins at most."""

_NUMBERS = 2**25
"""Numbers of meta-gradients that are compared at a time, 128 MiB."""


@dataclass(frozen=True)
class Explanation:
    """The best arrangement of recovered examples as an episode.

    `places (n,)` are the examples in the order of the episode: the support set by position, then the query set.
    `residual` is the distance of its meta-gradient from the one that was sent, as part of the latter's norm, and
    `contributions (n,)` the same, in the order of `places`, with one of them moved towards gray by a tenth; they are
    zero where the examples do not explain what was sent.
    """

    places: Tensor
    residual: float
    contributions: Tensor

    @property
    def holds(self) -> bool:
        """Return whether the examples together explain what was sent."""
        return self.residual <= _EXPLAINED

    @property
    def confirmed(self) -> Tensor:
        """Return which of the examples, in the order of `places`, what was sent confirms, `(n,)`."""
        return self.contributions >= _CONFIRMED * max(self.residual, _ROUNDING)


@dataclass(frozen=True)
class _Sent:
    """What learner `row` of an observation sent, and the `examples (n, ...)` that may be behind it."""

    observation: Observation
    row: int
    examples: Tensor
    squares: float

    @classmethod
    def of(cls, observation: Observation, row: int, examples: Tensor) -> Self:
        squares = sum(float(value[row].square().sum()) for value in observation.gradients.values())
        return cls(observation, row, examples, squares)

    def residuals(self, arrangements: Tensor) -> Tensor:
        """Return the residual of each of the arrangements `(t, n)`, `(t,)`."""
        numbers = sum(value[self.row].numel() for value in self.observation.gradients.values())
        chunks = torch.split(arrangements, max(1, _NUMBERS // numbers))
        return torch.cat([self._residuals(chunk) for chunk in chunks])

    def contributions(self, places: Tensor) -> Tensor:
        """Return the residual of the arrangement `(n,)` with each of its examples moved towards gray, `(n,)`."""
        count = len(self.examples)
        moved = replace(self, examples=torch.cat([self.examples, self.examples + _MOVED * (0.5 - self.examples)]))
        return moved.residuals(places + count * torch.eye(count, dtype=torch.int64))

    def _residuals(self, arrangements: Tensor) -> Tensor:
        seen, count = self.observation, len(arrangements)
        support_labels, query_labels = (labels.expand(count, -1) for labels in _labels(seen))
        held = self.examples[arrangements]
        support, query = held[:, : support_labels.shape[1]], held[:, support_labels.shape[1] :]
        batch = Episode(support, support_labels, query, query_labels)
        made, _ = batch_meta_gradients(seen.model, seen.rule, seen.parameters, batch)
        apart = [made[name] - value[self.row] for name, value in seen.gradients.items()]
        squares = torch.stack([difference.flatten(1).square().sum(dim=1) for difference in apart]).sum(dim=0)
        return torch.nan_to_num((squares / max(self.squares, 1e-30)).sqrt(), nan=torch.inf)


def explain(observation: Observation, row: int, examples: Tensor, seed: int) -> Explanation:
    """Return the arrangement of `examples (n, ...)` whose meta-gradient is nearest to what learner `row` sent.

    n is the number of examples of an episode of the observation's shape. The search ends with the first arrangement
    that explains what was sent; the best of several local optima is returned where there is none.
    """
    sent = _Sent.of(observation, row, examples)
    generator = generator_for(seed, "arrangements", row)
    best = Explanation(torch.arange(len(examples)), torch.inf, torch.zeros(len(examples)))
    for _ in range(_STARTS):
        found = _improved(sent, torch.randperm(len(examples), generator=generator))
        best = min(best, found, key=lambda one: one.residual)
        if best.holds:
            return replace(best, contributions=sent.contributions(best.places))
    return best


def _improved(sent: _Sent, places: Tensor) -> Explanation:
    """Return the arrangement after the best exchange of two examples, again and again until none is better."""
    support, query = _labels(sent.observation)
    slots = [*((0, int(label)) for label in support), *((1, int(label)) for label in query)]
    pairs = combinations(range(len(slots)), 2)
    exchanges = torch.tensor([[one, other] for one, other in pairs if slots[one] != slots[other]])
    residual = float(sent.residuals(places[None]))
    while residual > _EXPLAINED and len(exchanges):
        order = torch.arange(len(slots)).repeat(len(exchanges), 1)
        order.scatter_(1, exchanges, exchanges.flip(1))
        residuals = sent.residuals(places[order])
        nearest = int(residuals.argmin())
        if float(residuals[nearest]) >= residual:
            break
        places, residual = places[order[nearest]], float(residuals[nearest])
    return Explanation(places, residual, torch.zeros(len(places)))


def _labels(observation: Observation) -> tuple[Tensor, Tensor]:
    """Return the label positions of the support and of the query set."""
    positions = torch.arange(observation.ways)
    return positions.repeat_interleave(observation.shots), positions.repeat_interleave(observation.queries)
