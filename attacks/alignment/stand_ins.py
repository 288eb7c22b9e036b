"""Stand-ins: own images in the place of the sets of a learner that the adversary does not know."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metaleak.attacks.alignment.example_gradients import flattened
from metaleak.attacks.at_once import number_at_once
from metaleak.attacks.observation import Observation
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.clients.episode import Episode
from metaleak.clients.rules import batch_meta_gradients

_AT_ONCE = 4
"""Meta-gradients on a CPU: more of a convolutional network are no faster together and take memory."""


@dataclass(frozen=True)
class SeenLearner:
    """What the adversary sees of one learner, a real one or a shadow.

    `classes (ways,)` at each position; `gradient (1, D)` is what it sent, or the mean that it is a `share` of;
    `known (ways, n, C, H, W)` is the set that the attack does not ask about, where it is known.
    """

    classes: Tensor
    gradient: Tensor
    known: Tensor | None = None
    share: float = 1.0


@dataclass(frozen=True)
class StandIns:
    """K sets each in the place of a learner's: `support (K, ways, shots, ...)`, `query (K, ways, queries, ...)`.

    `references (ways, R, ...)` are own images that show what any image of a class adds.
    """

    support: Tensor
    query: Tensor
    references: Tensor


def stand_ins_for(
    learner: SeenLearner,
    observation: Observation,
    own: OwnExamples,
    asks: Literal["query", "support"],
    count: int,
    choices: int,
    references: int,
    generator: torch.Generator,
) -> StandIns:
    """Return `count` stand-ins for the two sets of `learner`, or the set that is known in its place.

    They are those of `count * choices` drawn ones whose meta-gradients are most like the learner's (by cosine): the
    parameters that they adapt to are then more like the learner's too. Drawn alike for the same generator state.
    """
    shots, queries = observation.shots, observation.queries
    if learner.known is not None and asks == "query":
        return StandIns(learner.known[None], learner.known[None], own.draw(learner.classes, references, generator))
    # Together, so that no image stands in for a support and a query image at once.
    drawn = [own.draw(learner.classes, shots + queries, generator) for _ in range(count * choices)]
    support, query = torch.split(torch.stack(drawn), [shots, queries], dim=2)
    usual = own.draw(learner.classes, references, generator)
    if learner.known is not None:
        query = learner.known.expand(len(support), *learner.known.shape)
    if choices > 1:
        likeness = torch.cat(
            [F.cosine_similarity(sent, learner.gradient) for sent in _gradients(observation, support, query)]
        )
        best = likeness.topk(count).indices
        support, query = support[best], query[best]
    return StandIns(support, query, usual)


def expected_gradient(observation: Observation, stand_ins: StandIns) -> Tensor:
    """Return the mean meta-gradient of the stand-ins, `(1, D)`."""
    return torch.cat(list(_gradients(observation, stand_ins.support, stand_ins.query))).mean(dim=0, keepdim=True)


def _gradients(observation: Observation, support: Tensor, query: Tensor) -> Iterator[Tensor]:
    """Yield the meta-gradients of learners that hold these sets, a few at a time, `(K, D)`."""
    count = number_at_once(_AT_ONCE, support.device)
    for sets in zip(torch.split(support, count), torch.split(query, count), strict=True):
        labels = [
            torch.arange(part.shape[1], device=part.device).repeat_interleave(part.shape[2]).expand(len(part), -1)
            for part in sets
        ]
        batch = Episode(sets[0].flatten(1, 2), labels[0], sets[1].flatten(1, 2), labels[1])
        yield flattened(batch_meta_gradients(observation.model, observation.rule, observation.parameters, batch)[0])
