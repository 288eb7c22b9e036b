"""Only the true examples reproduce a meta-gradient, without knowledge of their labels and sets."""

from dataclasses import replace

import pytest
import torch

from metaleak.attacks.layerwise.explanation import explain
from metaleak.attacks.observation import Observation
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML, FedSGD, anil, batch_meta_gradients

WAYS, SHOTS, QUERIES = 4, 2, 1
MODEL = MLP(hidden=(48, 24))
SLOTS = [*((0, label // SHOTS) for label in range(WAYS * SHOTS)), *((1, label) for label in range(WAYS * QUERIES))]


@pytest.fixture(scope="module")
def held():
    """The images of one learner in the order of its episode: support set, then query set."""
    found = EmbeddedMNIST().load()
    digits = [found.examples[found.labels == label][: SHOTS + QUERIES].float() / 255 for label in range(WAYS)]
    return torch.cat([*(one[:SHOTS] for one in digits), *(one[SHOTS:] for one in digits)])


def observed(held, rule):
    support, query = torch.arange(WAYS).repeat_interleave(SHOTS), torch.arange(WAYS).repeat_interleave(QUERIES)
    episode = Episode(held[: len(support)], support, held[len(support) :], query)
    parameters = MODEL.initialize((1, 28, 28), WAYS, keyed_generator("start"))
    gradients, _ = batch_meta_gradients(MODEL, rule, parameters, Episode(*(part[None] for part in episode)))
    return Observation(MODEL, rule, parameters, gradients, WAYS, SHOTS, QUERIES, input_shape=(1, 28, 28))


@pytest.mark.parametrize("rule", [MAML(), anil(), FedSGD()], ids=str)
def test_the_right_examples_are_arranged_as_they_were_held(held, rule):
    shuffled = torch.randperm(len(held), generator=keyed_generator("shuffled"))
    found = explain(observed(held, rule), 0, held[shuffled], seed=0)
    assert found.holds
    assert found.confirmed.all()
    assert found.residual < 1e-4
    slots = [SLOTS[place] for place in shuffled[found.places].tolist()]
    # A plain gradient is the same whichever of the two sets an example is in.
    of = (lambda slot: slot[1]) if isinstance(rule, FedSGD) else (lambda slot: slot)
    assert [of(slot) for slot in slots] == [of(slot) for slot in SLOTS]


def test_an_example_without_a_gradient_is_not_confirmed(held):
    """After training, confident examples have almost no gradient, so that other examples would fit, too."""
    observation = observed(held, FedSGD())
    parameters = {name: value.clone().requires_grad_() for name, value in observation.parameters.items()}
    labels = torch.arange(WAYS).repeat_interleave(SHOTS), torch.arange(WAYS).repeat_interleave(QUERIES)
    optimizer = torch.optim.Adam(parameters.values(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(MODEL(parameters, held), torch.cat(labels)).backward()
        optimizer.step()
    trained = {name: value.detach() for name, value in parameters.items()}
    episode = Episode(held[: len(labels[0])], labels[0], held[len(labels[0]) :], labels[1])
    gradients, _ = batch_meta_gradients(MODEL, FedSGD(), trained, Episode(*(part[None] for part in episode)))
    sent = replace(observation, parameters=trained, gradients=gradients)
    right = explain(sent, 0, held, seed=0)
    assert right.holds
    assert right.confirmed.any()
    holds = []
    for place in range(len(held)):
        wrong = held.clone()
        wrong[place] = (held[place] + held[place - 1]) / 2
        found = explain(sent, 0, wrong, seed=0)
        assert not found.confirmed[found.places == place].any()
        holds.append(found.holds)
    assert any(holds), "there is a wrong set that explains what was sent"


@pytest.mark.parametrize("rule", [MAML(), FedSGD()], ids=str)
def test_a_combination_of_two_images_does_not_reproduce_the_meta_gradient(held, rule):
    wrong = held.clone()
    wrong[3] = (held[3] + held[4]) / 2
    found = explain(observed(held, rule), 0, wrong, seed=0)
    assert not found.holds
    assert found.residual > 1e-2


def test_a_gradient_of_zeros_or_nan_is_not_reproduced(held):
    observation = observed(held, MAML())
    silent = {name: torch.zeros_like(value) for name, value in observation.gradients.items()}
    broken = {name: torch.full_like(value, torch.nan) for name, value in observation.gradients.items()}
    for gradients in (silent, broken):
        found = explain(replace(observation, gradients=gradients), 0, held, seed=0)
        assert not found.holds
        assert not found.confirmed.any()
