"""The predicted coefficients against those that a real meta-gradient has."""

import subprocess
import sys

import pytest
import torch

from metaleak.attacks.coefficients import activity, query_direction, support_direction
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML, Reptile


def world(hidden=(12, 9), bias=True, activation="relu"):
    generator = torch.Generator().manual_seed(3)
    model = MLP(hidden=hidden, bias=bias, activation=activation)
    parameters = {name: value.double() for name, value in model.initialise((1, 5, 6), 3, generator).items()}
    support, query = torch.rand(2, 3, 1, 5, 6, generator=generator, dtype=torch.float64)
    return model, parameters, support, query, torch.arange(3)


def first(model, gradient):
    return gradient["layer1.weight" if model.hidden else "head.weight"]


@pytest.mark.parametrize(
    ("hidden", "bias", "activation"), [((12, 9), True, "relu"), ((12,), False, "tanh"), ((), True, "relu")]
)
def test_without_adaptation_query_directions_give_the_gradient(hidden, bias, activation):
    model, parameters, support, query, labels = world(hidden, bias, activation)
    rule = MAML(inner_rate=1e-12)
    gradient, _ = rule.meta_gradient(model, parameters, Episode(support, labels, query, labels))
    direction = query_direction(model, parameters, query, labels)
    assert torch.allclose(direction.mT @ query.flatten(1) / 3, first(model, gradient), atol=1e-9)


@pytest.mark.parametrize("adapts", ["all", "head"])
def test_support_directions_give_the_second_order_part(adapts):
    """The meta-gradient is v - rate H v: the directions along v itself give the second term exactly."""
    model, parameters, support, query, labels = world(activation="softplus")
    rule, plain = MAML(inner_rate=0.3, adapts=adapts), MAML(inner_rate=0.3, order=1, adapts=adapts)
    episode = Episode(support, labels, query, labels)
    gradient, query_part = (one.meta_gradient(model, parameters, episode)[0] for one in (rule, plain))
    direction = support_direction(model, rule, parameters, query_part, support, labels)
    part = first(model, gradient) - first(model, query_part)
    assert torch.allclose(direction.mT @ support.flatten(1) * 0.3 / 3, part, atol=1e-12)
    assert part.abs().max() > 1e-6


def test_rules_without_a_second_derivative_have_no_support_direction():
    model, parameters, support, _, labels = world()
    for rule in (MAML(order=1), Reptile()):
        assert support_direction(model, rule, parameters, parameters, support, labels) is None


def test_activity_is_where_the_units_are_on():
    model, parameters, support, *_ = world()
    before = support.flatten(1) @ parameters["layer1.weight"].mT + parameters["layer1.bias"]
    assert torch.equal(activity(model, parameters, support), (before > 0).double())
    smooth = activity(MLP(hidden=(12, 9), activation="sigmoid"), parameters, support)
    assert smooth.max() == 1
    assert smooth.min() > 0
    assert torch.equal(activity(MLP(hidden=()), {"head.weight": torch.zeros(3, 30)}, support), torch.ones(3, 3))


_STRICT = """
import warnings, torch
from metaleak.attacks.coefficients import support_direction
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
model, images = MLP(hidden=(4,)), torch.rand(2, 1, 3, 3)
parameters = model.initialise((1, 3, 3), 2, torch.Generator().manual_seed(0))
warnings.simplefilter("error")
support_direction(model, MAML(), parameters, parameters, images, torch.arange(2))
"""


def test_nothing_deprecated_is_called():
    """In a process of its own: what torch warns of as it loads, it says once."""
    done = subprocess.run([sys.executable, "-c", _STRICT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
