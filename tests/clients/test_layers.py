"""The layers of a model are found by following an example, and a dense first layer is one that is shown to be."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import (
    INPUT,
    MLP,
    Conv4,
    Layers,
    LeNet,
    Model,
    TorchModule,
    dense_input_of,
    input_weight_of,
    layers_of,
)
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML

WAYS, SIDE = 3, 8


def images(count: int = 4, channels: int = 1, side: int = SIDE, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, side, side, generator=keyed_generator("images", seed))


def start(model: Model, channels: int = 1, side: int = SIDE) -> Parameters:
    return model.initialize((channels, side, side), WAYS, keyed_generator("start"))


def layers(module: Model | nn.Module, side: int = SIDE) -> Layers:
    model = TorchModule(module) if isinstance(module, nn.Module) else module
    return layers_of(model, start(model, side=side), images(side=side))


def dense(*before: nn.Module, width: int = SIDE**2) -> nn.Sequential:
    return nn.Sequential(*before, nn.Flatten(), nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, WAYS))


def test_the_layers_of_an_mlp() -> None:
    first, head = layers(MLP(hidden=(16,), activation="tanh")).chain()
    assert (first.name, first.kind, first.weight, first.bias) == ("layer1", "linear", "layer1.weight", "layer1.bias")
    assert (first.takes, first.input_shape, first.output_shape) == ((INPUT,), (64,), (16,))
    assert (first.after, first.activation) == (("tanh",), "tanh")
    assert (head.name, head.takes, head.output_shape, head.activation) == ("head", ("layer1",), (WAYS,), None)


def test_the_layers_of_a_module_have_its_own_names() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, WAYS),
    )
    convolution, norm, head = layers(module).chain()
    assert (convolution.kind, convolution.weight, convolution.bias) == ("conv2d", "0.weight", None)
    assert (convolution.input_shape, convolution.output_shape) == ((1, 8, 8), (4, 6, 6))
    assert (norm.kind, norm.weight, norm.bias, norm.takes) == ("batch_norm", "1.weight", "1.bias", ("0",))
    assert (norm.after, norm.activation) == (("relu", "max_pool2d"), "relu")
    assert (head.name, head.input_shape) == ("5", (36,))


class ByHand(nn.Module):
    """A layer written with a matrix product, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, SIDE**2))
        self.shift = nn.Parameter(torch.randn(16))
        self.twice = nn.Linear(16, 16)
        self.out = nn.Linear(16, WAYS)

    def forward(self, images: Tensor) -> Tensor:
        first = images.flatten(1) @ self.weight.mT + self.shift
        logits: Tensor = self.out(torch.sigmoid(self.twice(self.twice(first.relu()))))
        return logits


def test_layers_by_hand_and_layers_used_twice_are_told_apart() -> None:
    first, twice, again, out = layers(ByHand()).chain()
    assert (first.weight, first.bias, first.activation) == ("weight", "shift", "relu")
    assert (twice.name, again.name, out.takes) == ("twice", "twice.linear", ("twice.linear",))


@pytest.mark.parametrize(
    "model", [Conv4(filters=4, normalization="none"), LeNet(filters=3), MLP(hidden=())], ids=lambda one: repr(one)
)
def test_shipped_models_without_a_norm_are_chains_of_all_their_parameters(model: Model) -> None:
    found = layers(model, 16).chain()
    assert [name for layer in found for name in (layer.weight, layer.bias)] == list(start(model, side=16))


class Skip(nn.Module):
    """Two layers, and what they take beside what they give."""

    def __init__(self, after: bool) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, WAYS)
        self.after = after

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images.flatten(1)).relu()
        both: Tensor = features + self.second(features).relu()
        logits: Tensor = self.out(both) if self.after else both[:, :WAYS]
        return logits


def test_a_skip_connection_is_no_chain() -> None:
    with pytest.raises(
        ValueError, match=r"^the model is not a chain of layers: out takes first and second, not second"
    ):
        layers(Skip(after=True)).chain()
    with pytest.raises(ValueError, match=r"chain of layers: the logits are made of first and second, not of second"):
        layers(Skip(after=False)).chain()


class Normalize(nn.Module):
    """The fixed normalization of vision models, as a layer."""

    def __init__(self, *means: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(means)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        normalized: Tensor = (images - self.mean) / 0.25
        return normalized


class Viewed(nn.Module):
    """A module that knows the size of its images, and decides by it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIDE**2, WAYS)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] * images.shape[-2] != SIDE**2:
            raise ValueError("another size")
        logits: Tensor = self.layer(images.view(len(images), SIDE**2))
        return logits


@pytest.mark.parametrize(
    ("module", "weight"),
    [
        (lambda: dense(), "1.weight"),
        (lambda: dense(nn.Dropout(0.5), nn.Identity()), "3.weight"),
        (lambda: Viewed(), "layer.weight"),
        (lambda: Skip(after=True), "first.weight"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, WAYS, bias=False)), "1.weight"),
    ],
    ids=["plain", "dropout", "viewed", "skip", "classifier"],
)
def test_a_dense_first_layer_of_a_module_is_found(module: Callable[[], nn.Module], weight: str) -> None:
    model = TorchModule(module())
    assert input_weight_of(model) == weight
    parameters, given = start(model), images()
    torch.testing.assert_close(model(parameters, given.flatten(1)), model(parameters, given))
    # In coordinates, (units, n) and (B, n), in float64 too, and under vmap.
    turn = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=keyed_generator("turn")))[0]
    doubled = {name: value.double() for name, value in parameters.items()}
    turned = {**doubled, weight: doubled[weight] @ turn}
    inside = given.double().flatten(1) @ turn
    torch.testing.assert_close(model(turned, inside), model(doubled, given.double()))
    one_by_one = vmap(lambda one: model(turned, one[None])[0])(inside)
    torch.testing.assert_close(one_by_one, model(doubled, given.double()))


@pytest.mark.parametrize("means", [(0.4,), (0.3, 0.4, 0.5)], ids=["gray", "color"])
def test_a_fixed_normalization_before_the_dense_layer_is_found_with_it(means: tuple[float, ...]) -> None:
    model = TorchModule(dense(Normalize(*means), width=len(means) * 64))
    found, parameters, given = dense_input_of(model), start(model, len(means)), images(channels=len(means))
    assert found is not None
    assert found.weight == "2.weight"
    torch.testing.assert_close(found.inputs(given), Normalize(*means)(given).flatten(1))
    torch.testing.assert_close(model(parameters, found.inputs(given)), model(parameters, given))
    # The weight does not meet the pixels as they are.
    assert input_weight_of(model) is None


class Elsewhere(nn.Module):
    """A dense first layer, and something beside it that shows the image to later ones, or uses its weight again."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(64, 64), nn.Linear(64, WAYS)
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        return self.how(self, images.flatten(1))


@pytest.mark.parametrize(
    "module",
    [
        lambda: dense(nn.BatchNorm2d(1)),
        lambda: dense(nn.LayerNorm((SIDE, SIDE), elementwise_affine=False)),
        lambda: dense(nn.Softplus()),
        lambda: dense(nn.AdaptiveAvgPool2d(4), width=16),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(256, WAYS)),
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(WAYS)),
        lambda: Elsewhere(lambda self, flat: self.out(flat + self.first(flat).relu())),
        lambda: Elsewhere(lambda self, flat: self.out(self.first(flat).relu()) + flat[:, :WAYS]),
        lambda: Elsewhere(lambda self, flat: self.out(F.linear(self.first(flat), self.first.weight))),
        lambda: Elsewhere(lambda self, flat: self.out(self.first(flat[:, torch.arange(63, -1, -1)]))),
        lambda: Elsewhere(lambda self, flat: self.out(self.first(flat)) * self.first.weight.norm()),
    ],
    ids=[
        "batch norm",
        "layer norm",
        "nonlinear",
        "resized",
        "convolution",
        "lazy",
        "skip",
        "skip to the logits",
        "weight twice",
        "order",
        "weight norm",
    ],
)
def test_where_it_cannot_be_shown_no_dense_first_layer_is_named(module: Callable[[], nn.Module]) -> None:
    assert dense_input_of(TorchModule(module())) is None


def test_a_frozen_first_layer_is_none() -> None:
    module = dense()
    module[1].weight.requires_grad_(False)
    assert dense_input_of(TorchModule(module)) is None


def test_looking_for_the_first_layer_draws_no_random_numbers_and_leaves_the_module_as_it_was() -> None:
    module = dense(nn.Dropout(0.5))
    before, state = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    assert dense_input_of(TorchModule(module)) is not None
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_module_gives_the_meta_gradient_of_the_same_shipped_model() -> None:
    own, shipped = TorchModule(dense()), MLP(hidden=(16,))
    labels = torch.arange(WAYS)
    episode = Episode(images(WAYS, seed=1), labels, images(WAYS, seed=2), labels)
    parameters = start(own)
    names = dict(zip(parameters, ["layer1.weight", "layer1.bias", "head.weight", "head.bias"], strict=True))
    mine, _ = MAML().meta_gradient(own, parameters, episode)
    theirs, _ = MAML().meta_gradient(shipped, {names[name]: value for name, value in parameters.items()}, episode)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[names[name]])
