"""A cohort: many learners of one node computed together."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.learner import TaskLearner
from metaleak.clients.models import Model
from metaleak.clients.rules import Perturb, Rule
from metaleak.clients.shard import episodes


def cohort_meta_gradients(
    learners: Sequence[TaskLearner], parameters: Parameters, round: int, chunk: int = 16
) -> tuple[Parameters, Tensor]:
    """Return the meta-gradients of `learners`, stacked `(L, ...)`, and their query losses `(L,)`.

    All learners share one model, rule and task shape. `chunk` episodes are computed at once, see
    `batch_meta_gradients`; a learner's numbers depend, in their last bits, on the chunk it is in, so a caller who
    wants the same bits again passes the same chunks. The arithmetic is done where `parameters` are (CPU or GPU).
    """
    parts = [
        _chunk_meta_gradients(learners[start : start + chunk], parameters, round)
        for start in range(0, len(learners), chunk)
    ]
    if len(parts) == 1:
        return parts[0]
    gradients = {name: torch.cat([part[0][name] for part in parts]) for name in parameters}
    return gradients, torch.cat([part[1] for part in parts])


def batch_meta_gradients(
    model: Model, rule: Rule, parameters: Parameters, batch: Episode, perturbs: Sequence[Perturb | None] = ()
) -> tuple[Parameters, Tensor]:
    """Return the meta-gradients of a batch of episodes, stacked `(L, ...)`, and the losses `(L,)`.

    One episode, or any with an inner defence in `perturbs`, is computed by a plain call of the rule: an inner defence
    draws its noise inside it. All others are computed at once under `vmap`.
    """
    count = len(batch.support_labels)
    if count > 1 and not any(perturbs):
        gradients, losses = vmap(lambda one: rule.meta_gradient(model, parameters, one))(batch)
        return {name: value.detach() for name, value in gradients.items()}, losses.detach()
    computed = [
        rule.meta_gradient(model, parameters, Episode(*(part[row] for part in batch)), perturb)
        for row, perturb in zip(range(count), perturbs or [None] * count, strict=True)
    ]
    return _stacked([gradient for gradient, _ in computed]), torch.stack([loss for _, loss in computed]).detach()


def _stacked(gradients: Sequence[Parameters]) -> Parameters:
    """Return gradients shaped like one another as one, with a leading axis."""
    return {name: torch.stack([gradient[name] for gradient in gradients]).detach() for name in gradients[0]}


def _chunk_meta_gradients(
    learners: Sequence[TaskLearner], parameters: Parameters, round: int
) -> tuple[Parameters, Tensor]:
    first = learners[0]
    device = next(iter(parameters.values())).device
    if any(defence.place in ("support", "query") for learner in learners for defence in learner.defences):
        drawn = [learner.episode(round) for learner in learners]
        batch = Episode(*(torch.stack(parts) for parts in zip(*drawn, strict=True)))
    else:
        batch = episodes(first.data, [learner.drawn(round) for learner in learners])
    batch = Episode(*(part.to(device) for part in batch))
    perturbs = [learner.perturb(round) for learner in learners]
    gradients, losses = batch_meta_gradients(first.model, first.rule, parameters, batch, perturbs)
    if any(defence.place == "shared" for learner in learners for defence in learner.defences):
        gradients = _stacked(
            [
                learner.defend_shared({name: value[row] for name, value in gradients.items()}, round)
                for row, learner in enumerate(learners)
            ]
        )
    return gradients, losses
