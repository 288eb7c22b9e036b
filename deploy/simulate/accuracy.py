"""Adapted accuracy: the accuracy of the initialization after adaptation to held-out tasks."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.federation import Federation
from metaleak.clients.partition import TaskShape
from metaleak.clients.rules import Rule
from metaleak.clients.rules.memory import memory_share
from metaleak.clients.shard import episode, held_out_episode
from metaleak.clients.sharing import without_clip
from metaleak.deploy.config.experiment import EvaluationSettings

_COPIES = 4
"""About how many copies of the parameters the adaptation to one task needs."""


@dataclass(frozen=True)
class Accuracy:
    """Mean query accuracy over tasks, with the 95 % interval of that mean (normal, over tasks), and the mean loss."""

    value: float
    low: float
    high: float
    loss: float


class HeldOutTasks:
    """Evaluation tasks of held-out images, the same ones each time.

    The learners' defenses are not applied, since nothing is sent when a learner adapts a model for its own use.
    """

    def __init__(self, federation: Federation, settings: EvaluationSettings) -> None:
        """Raises `ValueError` when the held-out images do not suffice for the tasks."""
        images, held_out = federation.examples(), federation.split().held_out
        shape = TaskShape(ways=federation.task.ways, shots=federation.task.shots, queries=settings.queries)
        drawn = [
            episode(images, held_out_episode(images.labels, held_out, shape, federation.seed, number))
            for number in range(settings.tasks)
        ]
        self._batch = Episode(*(torch.stack(tensors) for tensors in zip(*drawn, strict=True)))
        self._federation = federation
        self._rule = _with_steps(federation.rule, settings.inner_steps)

    def accuracy(self, parameters: Parameters, chunk: int = 16) -> Accuracy:
        """Return the accuracy after adaptation to each task's support set, starting at the shared `parameters`.

        At most `chunk` tasks are computed at once, and fewer if the model would take too much memory.
        """
        parameters = without_clip(self._federation.whole(parameters))
        model = self._federation.model
        size = sum(value.numel() * value.element_size() for value in parameters.values())
        chunk = max(1, min(chunk, memory_share(torch.device("cpu")) // (_COPIES * size)))

        def measured(one: Episode) -> tuple[Tensor, Tensor]:
            adapted = self._rule.adapt(model, parameters, one)
            logits = model(adapted, one.query_inputs)
            loss = F.cross_entropy(logits, one.query_labels)
            return (logits.argmax(1) == one.query_labels).float().mean(), loss

        with torch.no_grad():
            per_task, losses = vmap(measured, chunk_size=chunk)(self._batch)
        per_task = per_task.double()
        mean, error = per_task.mean().item(), per_task.std().item() / math.sqrt(len(per_task))
        return Accuracy(mean, max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error), losses.mean().item())


def _with_steps(rule: Rule, steps: int | None) -> Rule:
    """Return `rule` adapting with another number of inner steps."""
    if steps is None:
        return rule
    copy = getattr(rule, "model_copy", None)
    if copy is None or not hasattr(rule, "inner_steps"):
        raise ValueError(f"evaluation.inner_steps: {type(rule).__name__} has no inner_steps to change")
    changed: Rule = copy(update={"inner_steps": steps})
    return changed
