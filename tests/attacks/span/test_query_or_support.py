"""Which set an image is in, from both scores together and a discriminant learned from shadow learners."""

import math

import torch
from membership_questions import inputs

from metaleak.attacks.attack import Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.span.query_or_support import log_odds_of_query, query_or_support
from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import Digits
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML

LEARNERS, WAYS, EACH = 8, 2, 3


def test_the_odds_are_those_of_two_normal_distributions_and_the_prior():
    generator = torch.Generator().manual_seed(0)
    query, support = (torch.randn(40_000, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    query[:, 0] += 2
    at = torch.tensor([[0.0, 0.0], [1.0, 5.0], [2.0, -5.0]], dtype=torch.float64)
    assert torch.allclose(
        log_odds_of_query(at, query, support), torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64), atol=0.15
    )
    fewer = log_odds_of_query(at, query, support[:10_000])
    assert torch.allclose(fewer, log_odds_of_query(at, query, support) + math.log(4), atol=0.15)


def test_the_set_of_an_image_is_found():
    federation = Federation(
        seed=5,
        data=Digits(),
        task=TaskShape(ways=WAYS, shots=EACH, queries=EACH),
        partition=Partition(learners=LEARNERS, held_out=0.4),
        model=MLP(hidden=(48,)),
        rule=MAML(),
    )
    parameters, own = federation.initial_parameters(), federation.split().held_out
    gradients, _ = cohort_meta_gradients(federation.learners(range(LEARNERS)), parameters, 1)
    drawn = [federation.learner(one).drawn(1) for one in range(LEARNERS)]
    places = torch.stack([torch.cat([one.query.flatten(), one.support.flatten()]) for one in drawn])
    positions = torch.arange(WAYS).repeat_interleave(EACH).repeat(2 * LEARNERS)
    rows = torch.arange(LEARNERS).repeat_interleave(2 * WAYS * EACH)
    observation = Observation(
        federation.model,
        federation.rule,
        parameters,
        gradients,
        WAYS,
        EACH,
        EACH,
        own_examples=inputs(federation, own),
        own_labels=federation.examples().labels[own],
        defenses=(),
    )
    targets = Targets(inputs(federation, places.flatten()), rows, positions)
    odds = query_or_support(observation, targets, seed=0)
    is_query = (torch.arange(2 * WAYS * EACH) < WAYS * EACH).repeat(LEARNERS)
    assert float(((odds > 0) == is_query).double().mean()) > 0.85
    assert torch.equal(odds, query_or_support(observation, targets, seed=0))
