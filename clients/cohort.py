"""A cohort: many learners of one node, computed together."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.learner import TaskLearner, mean_of_episodes
from metaleak.clients.rules import batch_in_parts, batch_meta_gradients, stacked
from metaleak.clients.shard import episodes
from metaleak.clients.sharing import computed_part, shared_part
from metaleak.defenses import Place


def cohort_meta_gradients(
    learners: Sequence[TaskLearner], parameters: Parameters, round: int, chunk: int = 16
) -> tuple[Parameters, Tensor]:
    """Return the shared meta-gradients of `learners`, stacked `(L, ...)`, and their query losses `(L,)`.

    `parameters` are all parameters of the model, shared or not. All learners have one model, rule and task shape.
    `chunk` episodes are computed at once, see `batch_meta_gradients`. The last bits of a learner's numbers depend on
    the chunk that it is in, so the same chunks must be passed to get the same bits again. The computation runs on
    the device of `parameters`.
    """
    parts = [
        _chunk_meta_gradients(learners[start : start + chunk], parameters, round)
        for start in range(0, len(learners), chunk)
    ]
    if len(parts) == 1:
        return parts[0]
    gradients = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    return gradients, torch.cat([part[1] for part in parts])


def cohort_in_parts(learners: Sequence[TaskLearner], parameters: Parameters, round: int) -> Iterator[Parameters]:
    """Return the meta-gradients of `learners`, computed as one chunk, some learners at a time and in their order.

    The bits are those of `cohort_meta_gradients`. Errors of a learner are raised by this call; a part may be used
    until the next one is asked for.
    """
    learners = [learner.told(parameters) for learner in learners]
    first = learners[0]
    if first.task.episodes_per_message > 1 or _any_at(learners, "shared"):
        return iter([_chunk_meta_gradients(learners, parameters, round)[0]])
    (batch,) = _batches(learners, parameters, round)
    model, moving = computed_part(first.shares, first.model, first.rule, parameters)
    perturbs, means = [one.perturb(round) for one in learners], [one.means(round) for one in learners]
    parts = batch_in_parts(model, first.rule, moving, batch, perturbs, means)
    return (shared_part(first.shares, part) for part in parts)


def _chunk_meta_gradients(
    learners: Sequence[TaskLearner], parameters: Parameters, round: int
) -> tuple[Parameters, Tensor]:
    learners = [learner.told(parameters) for learner in learners]
    first = learners[0]
    means = [learner.means(round) for learner in learners]
    model, moving = computed_part(first.shares, first.model, first.rule, parameters)
    # One episode of every learner at a time, so that messages that average several episodes take no more memory.
    gradients, losses = mean_of_episodes(
        [
            batch_meta_gradients(
                model, first.rule, moving, batch, [learner.perturb(round, number) for learner in learners], means
            )
            for number, batch in enumerate(_batches(learners, parameters, round))
        ]
    )
    gradients = shared_part(first.shares, gradients)
    if _any_at(learners, "shared"):
        gradients = stacked(
            [
                learner.defend_shared({name: value[row] for name, value in gradients.items()}, round)
                for row, learner in enumerate(learners)
            ]
        )
    return gradients, losses


def _batches(learners: Sequence[TaskLearner], parameters: Parameters, round: int) -> list[Episode]:
    """Return, for each episode of a message, the batch of all learners' episodes, on the device of `parameters`."""
    first, device = learners[0], next(iter(parameters.values())).device
    count = first.task.episodes_per_message
    if _any_at(learners, "support", "query"):
        # (L, m, n, ...)
        drawn = [torch.stack(parts) for parts in zip(*(learner.episodes(round) for learner in learners), strict=True)]
        batches = [Episode(*(part[:, number] for part in drawn)) for number in range(count)]
    else:
        draws = zip(*(learner.drawn(round).parts(count) for learner in learners), strict=True)
        batches = [episodes(first.data, each) for each in draws]
    return [Episode(*(part.to(device) for part in batch)) for batch in batches]


def _any_at(learners: Sequence[TaskLearner], *places: Place) -> bool:
    return any(defense.place in places for learner in learners for defense in learner.defenses)
