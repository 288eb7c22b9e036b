"""The task-learner: a private shard, a rule, and the defences that stand before anything leaves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from metaleak.clients.datasets import LabelledImages
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.partition import ShardIndices, TaskShape
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import Perturb, Rule
from metaleak.clients.shard import Draw, draw, episode
from metaleak.defenses import Defence, Place


@dataclass(frozen=True)
class TaskLearner:
    """A learner: number `learner` of the federation, with its own images and its own order of classes."""

    learner: int
    seed: int
    data: LabelledImages
    shard: ShardIndices
    task: TaskShape
    model: Model
    rule: Rule
    defences: tuple[Defence, ...] = ()

    def drawn(self, round: int) -> Draw:
        """Return which images this round's episode is made of."""
        return draw(self.shard, self.task, self.seed, self.learner, round)

    def episode(self, round: int) -> Episode:
        """Return this round's episode as the rule will see it: drawn from the shard, its images defended."""
        drawn = episode(self.data, self.drawn(round))
        return drawn._replace(
            support_images=self._defend("support", {"images": drawn.support_images}, round)["images"],
            query_images=self._defend("query", {"images": drawn.query_images}, round)["images"],
        )

    def meta_gradient(self, parameters: Parameters, round: int) -> tuple[Parameters, Tensor]:
        """Return what the learner sends, shaped like `parameters`, and its query loss, a scalar that it keeps."""
        gradients, losses = cohort_meta_gradients([self], parameters, round)
        return {name: stacked[0] for name, stacked in gradients.items()}, losses[0]

    def defend_shared(self, gradient: Parameters, round: int) -> Parameters:
        """Return the meta-gradient as it leaves."""
        return self._defend("shared", gradient, round)

    def perturb(self, round: int) -> Perturb | None:
        """Return what the defences do to each inner step's gradient, or `None` when there is nothing to do."""
        if not any(defence.place == "inner" for defence in self.defences):
            return None
        return lambda gradient, step: self._defend("inner", gradient, round, step)

    def _defend(self, place: Place, tensors: dict[str, Tensor], round: int, step: int = 0) -> dict[str, Tensor]:
        for order, defence in enumerate(self.defences):
            if defence.place == place:
                key = (self.seed, round, self.learner, "defence", order, step)
                tensors = defence(tensors, keyed_generator(*key))
        return tensors


def cohort_meta_gradients(
    learners: Sequence[TaskLearner], parameters: Parameters, round: int, chunk: int = 16
) -> tuple[Parameters, Tensor]:
    """Return the meta-gradients of `learners`, stacked `(L, ...)`, and their query losses `(L,)`.

    All learners share one model, rule and task shape. `chunk` episodes are computed at once under `vmap`; a learner's
    numbers depend, in their last bits, on the chunk it is in, so a caller who wants the same bits again passes the
    same chunks. Learners with an `inner` defence are computed one by one: their noise is drawn inside the rule.
    """
    parts = [
        _chunk_meta_gradients(learners[start : start + chunk], parameters, round)
        for start in range(0, len(learners), chunk)
    ]
    gradients = {name: torch.cat([part[0][name] for part in parts]) for name in parameters}
    return gradients, torch.cat([part[1] for part in parts])


def _chunk_meta_gradients(
    learners: Sequence[TaskLearner], parameters: Parameters, round: int
) -> tuple[Parameters, Tensor]:
    model, rule = learners[0].model, learners[0].rule
    episodes = [learner.episode(round) for learner in learners]
    if any(learner.perturb(round) is not None for learner in learners):
        computed = [
            rule.meta_gradient(model, parameters, episode, learner.perturb(round))
            for learner, episode in zip(learners, episodes, strict=True)
        ]
        gradients = _stack([gradient for gradient, _ in computed])
        losses = torch.stack([loss for _, loss in computed])
    else:
        batch = Episode(*(torch.stack(tensors) for tensors in zip(*episodes, strict=True)))
        gradients, losses = vmap(lambda one: rule.meta_gradient(model, parameters, one))(batch)
    defended = [
        learner.defend_shared({name: value[row] for name, value in gradients.items()}, round)
        for row, learner in enumerate(learners)
    ]
    return _stack(defended), losses.detach()


def _stack(gradients: Sequence[Parameters]) -> Parameters:
    return {name: torch.stack([gradient[name] for gradient in gradients]).detach() for name in gradients[0]}
