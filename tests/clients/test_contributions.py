"""Contributions that are never formed: the same norms and sums as those of each example by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metaleak.clients.episode import Parameters
from metaleak.clients.models import MLP, Conv4, TorchModule, dense_layers_of
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import ReleasedMeans
from metaleak.clients.sharing import WithConstants
from metaleak.defenses import RandomSource, RecordLevel

WAYS, SIDE = 3, 4


class Unpromised(MLP):
    """A class of its own, which promises nothing: each example is computed by itself."""


def start(model: MLP, seed: int = 0) -> Parameters:
    fresh = model.initialize((1, SIDE, SIDE), WAYS, keyed_generator(seed, "start"))
    return {name: value.double() for name, value in fresh.items()}


def released(clip: float) -> ReleasedMeans:
    return ReleasedMeans(
        RecordLevel(clip=clip, noise_multiplier=0), lambda reading, step: RandomSource.of(reading, step)
    )


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 6), max_size=3).map(tuple),
    bias=st.booleans(),
    clip=st.sampled_from([1e-3, 0.1, 1.0, 1e6]),
    count=st.integers(1, 9),
    seed=st.integers(0, 99),
    soft=st.booleans(),
)
def test_clipped_means_of_gradients_and_of_hessians_are_those_of_each_example(hidden, bias, clip, count, seed, soft):
    model = MLP(hidden=hidden, bias=bias, activation="tanh")
    alone = Unpromised(hidden=hidden, bias=bias, activation="tanh")
    assert dense_layers_of(alone) is None
    parameters = start(model, seed)
    random = keyed_generator(seed, "inputs")
    images = 3 * torch.randn(count, 1, SIDE, SIDE, dtype=torch.float64, generator=random)
    labels = torch.randint(WAYS, (count,), generator=random)
    if soft:
        labels = torch.rand(count, WAYS, dtype=torch.float64, generator=random).softmax(1)
    direction = {
        name: torch.randn(value.shape, dtype=value.dtype, generator=random) for name, value in parameters.items()
    }
    for names in (frozenset(parameters), frozenset({"head.weight"}), frozenset({"head.bias"})):
        found, expected = (
            released(clip).gradient(one, parameters, names, images, labels, "query") for one in (model, alone)
        )
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10 * clip)
    found, expected = (released(clip).curvature(one, parameters, direction, images, labels) for one in (model, alone))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9 * clip)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_an_example_that_is_no_number_adds_nothing_and_spoils_no_other(bad):
    model = MLP(hidden=(5,))
    parameters, names = start(model), frozenset(start(model))
    images = torch.rand(4, 1, SIDE, SIDE, dtype=torch.float64, generator=keyed_generator("images"))
    labels = torch.tensor([0, 1, 2, 0])
    direction = {name: torch.ones_like(value) for name, value in parameters.items()}
    others = images.clone()
    others[2] = 0.0
    images[2] = bad
    for one in (
        lambda some: released(1e-3).gradient(model, parameters, names, some, labels, "query"),
        lambda some: released(1e-3).curvature(model, parameters, direction, some, labels),
    ):
        found, without = one(images), one(others)
        assert all(torch.isfinite(value).all() for value in found.values())
        apart = torch.cat([(found[name] - without[name]).flatten() for name in names]).norm()
        assert apart <= 2e-3 / 4


def test_a_layer_that_is_constant_takes_no_part():
    model, parameters = MLP(hidden=(5, 4)), start(MLP(hidden=(5, 4)))

    def with_constants(*names: str) -> WithConstants:
        return WithConstants(model, {name: parameters[name] for name in names})

    some = with_constants("layer1.weight", "layer1.bias", "head.bias")
    assert dense_layers_of(some) == {"layer2.weight": "layer2.bias", "head.weight": "head.bias"}
    # A bias whose weight is constant leaves nothing that the layer's call could be known by.
    assert dense_layers_of(with_constants("layer1.weight")) is None
    assert dense_layers_of(WithConstants(Conv4(), {})) is None
    images = torch.rand(4, 1, SIDE, SIDE, dtype=torch.float64, generator=keyed_generator("images"))
    labels = torch.tensor([0, 1, 2, 0])
    names = frozenset({"layer2.weight", "layer2.bias", "head.weight"})
    moving = {name: parameters[name] for name in names}
    found = released(1e6).gradient(some, moving, names, images, labels, "query")
    whole = released(1e6).gradient(model, parameters, names, images, labels, "query")
    assert found.keys() == names
    for name in names:
        torch.testing.assert_close(found[name], whole[name])


class Mixed(nn.Module):
    """Its logits are those of two dense layers, less what all examples have in common."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(SIDE * SIDE, 5), nn.Linear(5, WAYS)

    def forward(self, images):
        features = torch.relu(self.body(images.flatten(1)))
        return self.head(features - features.mean(0))


class Doubled(nn.Module):
    """A weight is computed with before it meets the images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WAYS, SIDE * SIDE))

    def forward(self, images):
        return nn.functional.linear(images.flatten(1), 2 * self.weight)


def test_a_module_that_is_a_chain_of_dense_layers_is_found_to_be_one():
    chain = nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIDE * SIDE, 5),
        nn.LeakyReLU(),
        nn.Linear(5, 4, bias=False),
        nn.Tanh(),
        nn.Linear(4, 3),
    )
    model = TorchModule(chain)
    assert dense_layers_of(model) == {"1.weight": "1.bias", "3.weight": None, "5.weight": "5.bias"}
    parameters = model.initialize((1, SIDE, SIDE), WAYS, keyed_generator("start"))
    images = torch.rand(6, 1, SIDE, SIDE, generator=keyed_generator("images"))
    labels = torch.arange(6) % WAYS
    names = frozenset(parameters)
    found = released(1e-3).gradient(model, parameters, names, images, labels, "query")
    rows = [
        released(1e-3).gradient(model, parameters, names, *one, "query")
        for one in zip(images[:, None], labels[:, None], strict=True)
    ]
    for name, value in found.items():
        torch.testing.assert_close(value, torch.stack([row[name] for row in rows]).mean(0))


@pytest.mark.parametrize(
    "module",
    [
        Mixed(),
        Doubled(),
        nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, WAYS)),
        nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 5), nn.LayerNorm(5), nn.Linear(5, WAYS)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * (SIDE - 2) ** 2, WAYS)),
        # torch has no derivative of its derivative along a direction.
        nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 5), nn.SiLU(), nn.Linear(5, WAYS)),
    ],
    ids=["mixed", "doubled", "batch norm", "layer norm", "convolution", "silu"],
)
def test_any_other_is_not(module):
    assert dense_layers_of(TorchModule(module)) is None
