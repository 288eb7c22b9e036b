"""Whether recovered examples reproduce the meta-gradient that a learner sent, which confirms them.

The gradient of the first layer alone has several factorizations, and convex combinations of images look like images.
The other layers distinguish them: only the true examples, with the right labels and in the right sets, reproduce the
whole meta-gradient to within rounding. Labels and sets are unknown; they are found by exchanging two examples as long
as the meta-gradient comes closer.

How strongly this confirms an example depends on its contribution. An example that the network classifies with near
certainty has almost no gradient, and a similar one would fit as well. So each example is changed a little, and is
confirmed only if that changes the meta-gradient by much more than the residual.
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
"""The largest residual of a reproduced meta-gradient: float32 leaves 1e-6, a wrong image more than 1e-2."""

_MOVED = 0.1
"""How far an example is moved toward gray to measure its contribution, relative to its distance from gray."""

_CONFIRMED = 10.0
"""The change, in residuals, above which an example is confirmed: to about 1 % of its distance from gray."""

_ROUNDING = 1e-6
"""Residuals below this, the rounding of float32, may be smaller by chance and count as this."""

_STARTS = 6
"""The largest number of random arrangements from which the search starts."""

_NUMBERS = 2**25
"""The number of meta-gradient entries in memory at a time, 128 MiB."""


@dataclass(frozen=True)
class Explanation:
    """The best arrangement of recovered examples as an episode.

    `places (n,)` are the examples' indices in the order of the episode: the support set by label position, then the
    query set. `residual` is the distance of its meta-gradient from the one that was sent, relative to the latter's
    norm. `contributions (n,)`, in the order of `places`, are the residuals with one example each moved toward gray by
    a tenth; they are zero if the meta-gradient is not reproduced.
    """

    places: Tensor
    residual: float
    contributions: Tensor

    @property
    def holds(self) -> bool:
        """Whether the examples together reproduce the meta-gradient that was sent."""
        return self.residual <= _EXPLAINED

    @property
    def confirmed(self) -> Tensor:
        """Which examples, in the order of `places`, are confirmed by the meta-gradient, booleans `(n,)`."""
        return self.contributions >= _CONFIRMED * max(self.residual, _ROUNDING)


@dataclass(frozen=True)
class _Sent:
    """The meta-gradient that learner `row` sent, and `examples (n, ...)` that may have produced it."""

    observation: Observation
    row: int
    examples: Tensor
    squares: float

    @classmethod
    def of(cls, observation: Observation, row: int, examples: Tensor) -> Self:
        squares = sum(float(value[row].square().sum()) for value in observation.gradients.values())
        return cls(observation, row, examples, squares)

    def residuals(self, arrangements: Tensor) -> Tensor:
        """Return the residual of each of `arrangements (t, n)`, `(t,)`."""
        numbers = sum(value[self.row].numel() for value in self.observation.gradients.values())
        chunks = torch.split(arrangements, max(1, _NUMBERS // numbers))
        return torch.cat([self._residuals(chunk) for chunk in chunks])

    def contributions(self, places: Tensor) -> Tensor:
        """Return the residuals of arrangement `places (n,)` with each example in turn moved toward gray, `(n,)`."""
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
    """Return the arrangement of `examples (n, ...)` with the meta-gradient closest to that of learner `row`.

    n is the number of examples in one episode. The search ends with the first arrangement that reproduces the
    meta-gradient; if there is none, the best of several local optima is returned.
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
    """Return a local optimum: the best exchange of two examples is applied until none is an improvement."""
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
    """Return the label positions of the support set and of the query set."""
    positions = torch.arange(observation.ways)
    return positions.repeat_interleave(observation.shots), positions.repeat_interleave(observation.queries)
