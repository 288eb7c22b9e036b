"""Stand-ins: the adversary's own images in place of a learner's unknown sets."""

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
"""The number of meta-gradients computed at a time on a CPU: more are no faster and take more memory."""


@dataclass(frozen=True)
class SeenLearner:
    """The adversary's view of one learner, real or simulated.

    `classes (ways,)` are those at each position; `gradient (1, D)` is its gradient, or a mean to which it contributes
    the fraction `share`; `known (ways, n, C, H, W)` is the set that is not attacked, if it is known.
    """

    classes: Tensor
    gradient: Tensor
    known: Tensor | None = None
    share: float = 1.0


@dataclass(frozen=True)
class StandIns:
    """K replacements of a learner's sets: `support (K, ways, shots, ...)` and `query (K, ways, queries, ...)`.

    `references (ways, R, ...)` are own images for the mean contribution of each class.
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
    """Return `count` stand-ins for the two sets of `learner`; a known set is used as it is.

    Of `count * choices` drawn sets those are kept whose meta-gradients have the largest cosine similarity to the
    learner's; the parameters adapted to them are then more similar to the learner's, too. The result is determined by
    the generator's state.
    """
    shots, queries = observation.shots, observation.queries
    if learner.known is not None and asks == "query":
        return StandIns(learner.known[None], learner.known[None], own.draw(learner.classes, references, generator))
    # Drawn together, so that no image is in both sets.
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
    """Yield the meta-gradients of learners that hold these sets, a few at a time, in total `(K, D)`."""
    count = number_at_once(_AT_ONCE, support.device)
    for sets in zip(torch.split(support, count), torch.split(query, count), strict=True):
        labels = [
            torch.arange(part.shape[1], device=part.device).repeat_interleave(part.shape[2]).expand(len(part), -1)
            for part in sets
        ]
        batch = Episode(sets[0].flatten(1, 2), labels[0], sets[1].flatten(1, 2), labels[1])
        yield flattened(batch_meta_gradients(observation.model, observation.rule, observation.parameters, batch)[0])
