"""Canaries: two neighboring inputs, as far apart as a guarantee allows, sent through a learner's own code."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from metaleak.clients.datasets import LabeledExamples
from metaleak.clients.dealt_shards import ShardIndices
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.learner import TaskLearner
from metaleak.clients.models import MLP
from metaleak.clients.partition import TaskShape
from metaleak.clients.rules import MAML, Rule, reads_means
from metaleak.defenses import (
    CLIP_NAME,
    Accounted,
    AdaptsClip,
    Defense,
    ExampleMechanism,
    ExampleSet,
    RecordLevel,
    SharesNoise,
    adapting,
)

LARGE = 1e6
"""The size of canaries, far above any clipping norm: an input that is not clipped, or too late, is found at once."""

_LARGE_CLIP = 1e3

_BELOW = 1 - 1e-4
"""A size in units of the clipping norm that is counted as below it, and is nearly as large as what is clipped."""

SHARING = 2
"""The number of learners in the sum, where learners share its noise."""

_NO_DATA = LabeledExamples(torch.zeros(1, 1, 1, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("none",))
_NO_SHARD = ShardIndices((), torch.zeros(0, 0, dtype=torch.int64))
_TASK = TaskShape(ways=2, shots=10, queries=20)
_READERS = 1000
"""Query images of each class where they measure the adapted parameters: so many that their own noise averages out."""

_READ_WITHIN = 4.0
"""The range that the query images measure, to either side, in standard deviations of the inner steps' noise."""

_MODEL = MLP(hidden=())


class Canary(Protocol):
    """A pair of neighboring inputs, and what a learner sends for each of them."""

    @property
    def accounted(self) -> float:
        """The epsilon that is accounted for all `rounds`."""
        ...

    @property
    def rounds(self) -> int:
        """The rounds in which the learner takes part."""
        ...

    def sent(self, learner: int, first: bool, round: int) -> tuple[float, ...]:
        """Return what `learner` sends in `round` where it holds the `first` of the two inputs, or the second.

        The first number is the message's coordinate along the line between the two inputs. Where a clipping norm
        adapts, the second number is what the message says about it.
        """
        ...


def canary_for(defense: Defense, rule: Rule, asks: ExampleSet, rounds: int, seed: int) -> tuple[Canary, float]:
    """Return the canary for a defense with a guarantee, and the guarantee's delta.

    `rule` and `asks` matter to a defense of the place `example` alone. Raises `ValueError` in one line, which begins
    with the key at fault, for a defense without a guarantee or with one that does not fit.
    """
    defense, delta = ready(defense, rule, rounds)
    assert isinstance(defense, Accounted)
    learners = SHARING if isinstance(defense, SharesNoise) else 1
    if isinstance(defense, RecordLevel):
        accounted = defense.epsilons_after(rounds)[asks]
        return CanaryImage(defense, rule, asks, rounds, accounted, seed, learners), delta
    return CanaryGradient(defense, rounds, defense.epsilon_after(rounds), seed, learners), delta


def ready(defense: Defense, rule: Rule, rounds: int, learners: int = SHARING) -> tuple[Defense, float]:
    """Return the defense as it acts in a run of so many `rounds`, and the delta of its guarantee.

    Where the guarantee is about a sum over learners, it is a sum over `learners`. Raises `ValueError` as `canary_for`
    does.
    """
    if isinstance(defense, ExampleMechanism):
        defense = defense.for_readings(reads_means(rule).readings)
    if isinstance(defense, SharesNoise):
        if isinstance(defense, BaseModel):
            # The sum that is audited is over `learners`, whatever the run's needs at least.
            defense = defense.model_copy(update={"least_learners": None})
        defense = defense.for_learners(learners)
    if not isinstance(defense, Accounted):
        raise ValueError(f"name: {type(defense).__name__} has no guarantee that could be audited")
    defense = defense.for_releases(rounds)
    if not isinstance(defense, RecordLevel) and defense.place != "shared":
        raise ValueError(f"name: no canary is known for {type(defense).__name__} at the place {defense.place!r}")
    if isinstance(defense, AdaptsClip) and defense.adapt is not None:
        # So large that the other entries of the gradient do not matter; the guarantee holds for any norm.
        defense = defense.with_sent_clip(_LARGE_CLIP)
    if not math.isfinite(defense.epsilon_after(rounds)):
        raise ValueError(f"noise_multiplier: {type(defense).__name__} promises no finite epsilon")
    return defense, defense.delta


@dataclass(frozen=True)
class CanaryGradient:
    """Two meta-gradients of opposite directions, of a norm far beyond any clipping norm.

    Their signs change from round to round, as the parameters that a server sends could change them: noise that is
    drawn once for two rounds cancels. Where the clipping norm adapts, one of the two is just below it and as far from
    the other, so that the count tells them apart, too. Where a guarantee is about the sum of several `learners`, the
    others send nothing but their noise, and the sum is what is seen.
    """

    defense: Defense
    rounds: int
    accounted: float
    seed: int
    learners: int = 1

    def sent(self, learner: int, first: bool, round: int) -> tuple[float, ...]:
        """Return the sum of the sent entries, each of which has an equal share of the canary."""
        adapts = adapting([self.defense])
        size = LARGE if first == (_sign(round) > 0) else -LARGE
        if adapts is not None and size < 0:
            size = -_BELOW * adapts.sent_clip / 8**0.5
        seen, said = 0.0, 0.0
        for number in range(self.learners):
            entries = torch.full((2, 2), 0.0 if number else size, dtype=torch.float64)
            one = stand_in(self.defense, MAML(), learner * self.learners + number, self.seed)
            sent = one.defend_shared({"layer1.weight": entries, "head.weight": entries}, round)
            said += float(sent.pop(CLIP_NAME, torch.zeros(1)))
            seen += float(sum(value.sum() for value in sent.values()))
        return _signed((seen, said) if adapts is not None else (seen,), round)


@dataclass(frozen=True)
class CanaryImage:
    """Two images with opposite gradients, in an episode whose other images measure the adapted parameters.

    The model is softmax regression on two pixels and two classes, whose parameters the server chooses. The weights of
    the second pixel are so large that the canary, of class 0, is taken for class 1 whatever the noise of inner steps:
    its gradient is (-1, 1) times its first pixel, which is large, of either sign. So it contributes the clipping norm
    in one direction or the other, to every mean. Where that norm adapts, the one is just below it, as above.

    Where a rule takes the query set's gradients at adapted parameters (`support`, MAML), the canary is in the support
    set, and the query images measure the adapted weights of the first pixel. Each has a threshold of its own, set by
    its second pixel: above it the image is taken for the other class, and its gradient jumps from 0 to the clipping
    norm. There are 250 of them for each standard deviation of the inner steps' noise. The noise of their mean, as
    large as 2 z contributions for the noise multiplier z, is small beside that.

    So in both sets the two inputs are as far apart as is accounted for: mu is 1 / z for each mean. It is smaller by a
    factor of 1e-5, by which norms are kept below the clipping norm, and of z^2 / 3e4 where query images measure.
    """

    defense: RecordLevel
    rule: Rule
    asks: ExampleSet
    rounds: int
    accounted: float
    seed: int
    learners: int = 1

    def sent(self, learner: int, first: bool, round: int) -> tuple[float, ...]:
        """Return the difference of the two classes' first weights in what is sent."""
        seen, said = 0.0, 0.0
        for number in range(self.learners):
            episode = self._episodes[0 if number else (1 if first else -1) * _sign(round)]
            means = stand_in(self.defense, self.rule, learner * self.learners + number, self.seed).means(round)
            assert means is not None
            sent, _ = reads_means(self.rule).released_meta_gradient(_MODEL, _PARAMETERS, episode, means)
            weight = sent["head.weight"]
            seen += float(weight[1, 0] - weight[0, 0])
            said += sum(means.falls)
        return _signed((seen, said) if self.defense.adapt is not None else (seen,), round)

    @cached_property
    def _episodes(self) -> dict[int, Episode]:
        """The episodes with the canary of either sign, and (0) an empty one for learners that send noise alone."""
        return {sign: self._episode(sign) for sign in (-1, 0, 1)}

    def _episode(self, sign: int) -> Episode:
        queries = _READERS if self._is_read else _TASK.queries
        support, query = _TASK.ways * _TASK.shots, _TASK.ways * queries
        inputs = {
            "support": torch.zeros(support, 2, dtype=torch.float64),
            "query": self._readers(query) if self._is_read and sign else torch.zeros(query, 2, dtype=torch.float64),
        }
        if sign:
            size = LARGE if sign > 0 or self.defense.adapt is None else _BELOW * self.defense.sent_clip / 2**0.5
            inputs[self.asks][0] = torch.tensor([sign * size, 1.0], dtype=torch.float64)
        positions = torch.arange(_TASK.ways)
        return Episode(
            inputs["support"][:, None, None],
            positions.repeat_interleave(_TASK.shots),
            inputs["query"][:, None, None],
            positions.repeat_interleave(queries),
        )

    @property
    def _is_read(self) -> bool:
        """Whether the canary has an effect on the adapted parameters alone."""
        return self.asks == "support" and isinstance(self.rule, MAML)

    def _readers(self, count: int) -> Tensor:
        """Return query images `(count, 2)` that measure the adapted weights of the first pixel."""
        assert isinstance(self.rule, MAML)
        steps, examples = self.rule.inner_steps, _TASK.ways * _TASK.shots
        deviation = self.rule.inner_rate * self.defense.standard_deviation("support", examples) * (2 * steps) ** 0.5
        thresholds = torch.linspace(-_READ_WITHIN, _READ_WITHIN, _READERS, dtype=torch.float64).repeat(_TASK.ways)
        # 1e-4 deviations from its threshold an image is in one class for sure, its gradient above the clipping norm.
        first = torch.full_like(thresholds, max(1e5 / deviation, LARGE * self.defense.clip_of("query")))
        return torch.stack([first, -thresholds * deviation * first / (2 * _WEIGHT)], dim=1)


_WEIGHT = 1e18
"""The weight of the second pixel."""


_PARAMETERS: Parameters = {
    "head.weight": torch.tensor([[0.0, -_WEIGHT], [0.0, _WEIGHT]], dtype=torch.float64),
    "head.bias": torch.zeros(2, dtype=torch.float64),
}


def _signed(seen: tuple[float, ...], round: int) -> tuple[float, ...]:
    return tuple(_sign(round) * one for one in seen)


def _sign(round: int) -> int:
    return 1 if round % 2 else -1


def stand_in(defense: Defense, rule: Rule, number: int, seed: int) -> TaskLearner:
    """Return a learner without data, whose defenses alone are used."""
    return TaskLearner(number, seed, _NO_DATA, _NO_SHARD, _TASK, _MODEL, rule, (defense,))
