"""A cohort: many learners of one node computed together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.learner import TaskLearner, mean_of_episodes
from metaleak.clients.rules import batch_meta_gradients, stacked
from metaleak.clients.shard import episodes
from metaleak.clients.sharing import computed_part, shared_part


def cohort_meta_gradients(
    learners: Sequence[TaskLearner], parameters: Parameters, round: int, chunk: int = 16
) -> tuple[Parameters, Tensor]:
    """Return the meta-gradients of `learners`, stacked `(L, ...)`, of what is shared, and their query losses `(L,)`.

    `parameters` are all of the model, shared or not. All learners share one model, rule and task shape. `chunk`
    episodes are computed at once, see `batch_meta_gradients`; a learner's numbers depend, in their last bits, on the
    chunk it is in, so a caller who wants the same bits again passes the same chunks. The arithmetic is done where
    `parameters` are (CPU or GPU).
    """
    parts = [
        _chunk_meta_gradients(learners[start : start + chunk], parameters, round)
        for start in range(0, len(learners), chunk)
    ]
    if len(parts) == 1:
        return parts[0]
    gradients = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    return gradients, torch.cat([part[1] for part in parts])


def _chunk_meta_gradients(
    learners: Sequence[TaskLearner], parameters: Parameters, round: int
) -> tuple[Parameters, Tensor]:
    learners = [learner.told(parameters) for learner in learners]
    first = learners[0]
    device = next(iter(parameters.values())).device
    count = first.task.episodes_per_message
    if any(defense.place in ("support", "query") for learner in learners for defense in learner.defenses):
        # (L, m, n, ...)
        drawn = [torch.stack(parts) for parts in zip(*(learner.episodes(round) for learner in learners), strict=True)]
        batches = [Episode(*(part[:, number] for part in drawn)) for number in range(count)]
    else:
        draws = zip(*(learner.drawn(round).parts(count) for learner in learners), strict=True)
        batches = [episodes(first.data, each) for each in draws]
    means = [learner.means(round) for learner in learners]
    model, moving = computed_part(first.shares, first.model, first.rule, parameters)
    # One episode of every learner at once: a chunk takes no more memory where messages average several.
    gradients, losses = mean_of_episodes(
        [
            batch_meta_gradients(
                model,
                first.rule,
                moving,
                Episode(*(part.to(device) for part in batch)),
                [learner.perturb(round, number) for learner in learners],
                means,
            )
            for number, batch in enumerate(batches)
        ]
    )
    gradients = shared_part(first.shares, gradients)
    if any(defense.place == "shared" for learner in learners for defense in learner.defenses):
        gradients = stacked(
            [
                learner.defend_shared({name: value[row] for name, value in gradients.items()}, round)
                for row, learner in enumerate(learners)
            ]
        )
    return gradients, losses
