"""Data that is not shared must not show in the rounding of shared gradients."""

import torch

from metaleak.attacks.attack import Targets
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.observation import Observation
from metaleak.attacks.span.span_test import SpanTest
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.episode import Episode
from metaleak.clients.federation import Federation
from metaleak.clients.models import MLP
from metaleak.clients.partition import Partition, TaskShape
from metaleak.clients.rules import batch_meta_gradients, first_order_maml

LEARNERS, WAYS = 20, 5


def test_first_order_maml_on_many_learners_at_once_does_not_reveal_support_images():
    made = Federation(
        1,
        EmbeddedMNIST(),
        TaskShape(ways=WAYS),
        Partition(learners=LEARNERS),
        MLP(hidden=(64, 64)),
        first_order_maml(),
    )
    parameters = made.initial_parameters()
    held = [made.learner(number).episode(1) for number in range(LEARNERS)]
    batch = Episode(*(torch.stack(part) for part in zip(*held, strict=True)))
    gradients, _ = batch_meta_gradients(made.model, made.rule, parameters, batch)
    others = [*held[1:], held[0]]
    asked = [one for pair in zip(held, others, strict=True) for one in pair]
    targets = Targets(
        torch.cat([one.support_inputs for one in asked]),
        torch.arange(LEARNERS).repeat_interleave(2 * WAYS),
        torch.cat([one.support_labels for one in asked]),
    )
    answers = SpanTest(asks="support")(
        Observation(made.model, made.rule, parameters, gradients, WAYS, 1, 1), targets, 0
    )
    member = ([True] * WAYS + [False] * WAYS) * LEARNERS
    # A support image resembles the query images of its own task a little.
    assert evaluate(answers.scores.numpy(), member).auc.value < 0.75
