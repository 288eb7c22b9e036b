"""The predicted coefficients equal those of a real meta-gradient."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jvp, vmap

from metaleak.attacks.span.predicted_coefficients import activity, query_direction, support_direction
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML, FedAvg, FedSGD, Reptile


def world(hidden=(12, 9), bias=True, activation="relu"):
    generator = torch.Generator().manual_seed(3)
    model = MLP(hidden=hidden, bias=bias, activation=activation)
    parameters = {name: value.double() for name, value in model.initialize((1, 5, 6), 3, generator).items()}
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
    for rule in (MAML(order=1), Reptile(), FedSGD(), FedAvg()):
        assert support_direction(model, rule, parameters, parameters, support, labels) is None


def test_activity_is_where_the_units_are_on():
    model, parameters, support, *_ = world()
    before = support.flatten(1) @ parameters["layer1.weight"].mT + parameters["layer1.bias"]
    assert torch.equal(activity(model, parameters, support), (before > 0).double())
    smooth = activity(MLP(hidden=(12, 9), activation="sigmoid"), parameters, support)
    assert smooth.max() == 1
    assert smooth.min() > 0
    assert torch.equal(
        activity(MLP(hidden=()), {"head.weight": torch.zeros(3, 30).double()}, support), torch.ones(3, 3)
    )


_STRICT = """
import warnings, torch
from metaleak.attacks.span.predicted_coefficients import support_direction
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
model, images = MLP(hidden=(4,)), torch.rand(2, 1, 3, 3)
parameters = model.initialize((1, 3, 3), 2, torch.Generator().manual_seed(0))
warnings.simplefilter("error")
support_direction(model, MAML(), parameters, parameters, images, torch.arange(2))
"""


def test_no_deprecated_function_is_called():
    """In a process of its own, since torch issues some warnings only once, while it is imported."""
    done = subprocess.run([sys.executable, "-c", _STRICT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TwoBranches:
    """A user's model, which uses the outputs of its first layer in two ways: squared and unchanged."""

    @property
    def input_weight(self):
        return "in.weight"

    def initialize(self, input_shape, ways, generator):
        shapes = {"in.weight": (8, 30), "in.bias": (8,), "head.square": (ways, 4), "head.plain": (ways, 4)}
        return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}

    def __call__(self, parameters, images):
        first = images.flatten(1) @ parameters["in.weight"].mT + parameters["in.bias"]
        return (
            first[:, :4].square() @ parameters["head.square"].mT + first[:, 4:].relu() @ parameters["head.plain"].mT
        )


def loss_at(model, parameters, bias, image, position):
    """The loss of one image, with this bias of the first layer: its derivative is the layer's coefficients."""
    name = model.input_weight.replace("weight", "bias")
    return F.cross_entropy(model({**parameters, name: bias}, image[None]), position[None])


@pytest.mark.parametrize(
    "model", [MLP(hidden=(12, 9), activation="tanh"), MLP(hidden=(7,)), TwoBranches()], ids=["tanh", "relu", "own"]
)
def test_directions_are_derivatives_by_the_layers_bias(model):
    _, _, support, _, labels = world()
    generator = torch.Generator().manual_seed(1)
    parameters = {name: value.double() for name, value in model.initialize((1, 5, 6), 3, generator).items()}
    outer = {name: torch.randn(value.shape, generator=generator).double() for name, value in parameters.items()}
    name = model.input_weight.replace("weight", "bias")

    def along(bias, image, position):
        def loss(at):
            return loss_at(model, at, at[name], image, position)

        return jvp(loss, ({**parameters, name: bias},), (outer,))[1]

    for_query = vmap(grad(lambda *one: loss_at(model, parameters, *one)), in_dims=(None, 0, 0))
    for_support = vmap(grad(along), in_dims=(None, 0, 0))
    query = query_direction(model, parameters, support, labels)
    torch.testing.assert_close(query, for_query(parameters[name], support, labels), rtol=1e-12, atol=1e-14)
    found = support_direction(model, MAML(), parameters, outer, support, labels)
    torch.testing.assert_close(found, -for_support(parameters[name], support, labels), rtol=1e-12, atol=1e-14)


def test_without_a_known_activation_a_unit_is_active_where_a_logit_depends_on_it():
    model, (_, _, support, *_) = TwoBranches(), world()
    parameters = {
        name: value.double()
        for name, value in model.initialize((1, 5, 6), 3, torch.Generator().manual_seed(1)).items()
    }
    before = support.flatten(1) @ parameters["in.weight"].mT + parameters["in.bias"]
    expected = torch.cat([torch.ones(3, 4), (before[:, 4:] > 0)], dim=1).double()
    assert 0 < expected[:, 4:].mean() < 1
    assert torch.equal(activity(model, parameters, support), expected)


def test_a_subclass_does_not_inherit_a_known_activation():
    class Doubled(MLP):
        @property
        def input_weight(self):
            return "layer1.weight"

    _, parameters, support, *_ = world((12,), activation="tanh")
    model = Doubled(hidden=(12,), activation="tanh")
    assert torch.equal(activity(model, parameters, support), torch.ones(3, 12).double())
