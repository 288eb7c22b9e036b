"""Adapted accuracy: against a loop, on held-out images only."""

import pytest
import torch

from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.datasets import Digits
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.clients.shard import episode, held_out_episode
from metaleak.deploy.config.experiment import EvaluationSettings
from metaleak.deploy.simulate.accuracy import HeldOutTasks

FEDERATION = Federation(
    seed=0,
    data=Digits(),
    task=TaskShape(ways=3),
    partition=Partition(learners=5),
    model=MLP(hidden=(16,)),
    rule=MAML(inner_rate=1.0),
)


@pytest.mark.parametrize("steps", [None, 4])
def test_it_is_the_mean_over_tasks_with_its_interval(steps):
    settings = EvaluationSettings(tasks=12, queries=4, inner_steps=steps)
    start = FEDERATION.initial_parameters()
    found = HeldOutTasks(FEDERATION, settings).accuracy(start, chunk=5)
    shape, labels = TaskShape(ways=3, shots=1, queries=4), FEDERATION.examples().labels
    rule, rates = MAML(inner_rate=1.0, inner_steps=steps or 1), []
    for number in range(12):
        drawn = held_out_episode(labels, FEDERATION.split().held_out, shape, FEDERATION.seed, number)
        one = episode(FEDERATION.examples(), drawn)
        logits = FEDERATION.model(rule.adapt(FEDERATION.model, start, one), one.query_inputs)
        rates.append((logits.argmax(1) == one.query_labels).double().mean())
    expected = torch.stack(rates)
    assert found.value == pytest.approx(expected.mean().item())
    assert found.high - found.low == pytest.approx(2 * 1.96 * expected.std().item() / 12**0.5)


def test_too_few_held_out_images_are_named_before_anything_starts():
    with pytest.raises(ValueError, match="held-out images"):
        HeldOutTasks(FEDERATION, EvaluationSettings(queries=500))
