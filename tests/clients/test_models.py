"""Every shipped model is a pure function with the shapes that it promises."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ValidationError
from torch import nn

from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP, Conv4, LeNet, Model, TorchModule, head_of, torch_module
from metaleak.clients.models.model import Activation, activate
from metaleak.clients.models.normalization import batch_statistics, normalize_by, normalize_over_groups
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML, anil

MODELS: dict[str, Model] = {
    "mlp": MLP(),
    "mlp unbiased": MLP(hidden=(32,), bias=False, activation="tanh"),
    "mlp linear": MLP(hidden=()),
    "conv4": Conv4(),
    "conv4 group max": Conv4(filters=12, normalization="group", downsample="max"),
    "conv4 none": Conv4(filters=4, normalization="none"),
    "lenet": LeNet(),
    "lenet fan-in": LeNet(activation="softplus", weight_bound=None),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 20)])
def test_logits_have_one_column_a_way(model: Model, shape: tuple[int, int, int]) -> None:
    assert isinstance(model, Model)
    parameters = model.initialize(shape, 7, keyed_generator(0))
    assert all(value.dtype == torch.float32 for value in parameters.values())
    assert head_of(model) == ("head.weight", "head.bias")
    assert set(head_of(model)) <= set(parameters)
    images = torch.rand(6, *shape, generator=keyed_generator(1))
    logits = model(parameters, images)
    assert logits.shape == (6, 7)
    assert torch.equal(logits, model(parameters, images))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_every_parameter_is_used(model: Model) -> None:
    parameters = model.initialize((1, 20, 20), 3, keyed_generator(0))
    images = torch.rand(4, 1, 20, 20, generator=keyed_generator(1))
    leaves = {name: value.requires_grad_() for name, value in parameters.items()}
    loss = F.cross_entropy(model(leaves, images), torch.tensor([0, 1, 2, 0]))
    assert len(torch.autograd.grad(loss, list(leaves.values()))) == len(leaves)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_the_generator_alone_decides_the_start(model: Model) -> None:
    one, again, other = (model.initialize((1, 28, 28), 5, keyed_generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_conv4_refuses_an_image_that_cannot_be_halved_four_times() -> None:
    with pytest.raises(ValueError, match="15x16 is too small"):
        Conv4(downsample="max").initialize((1, 15, 16), 5, keyed_generator(0))
    Conv4(downsample="max").initialize((1, 16, 16), 5, keyed_generator(0))
    Conv4(downsample="stride").initialize((1, 8, 8), 5, keyed_generator(0))


@pytest.mark.parametrize(
    ("kind", "values"),
    [(MLP, {"hidden": (0,)}), (Conv4, {"filters": 0}), (LeNet, {"weight_bound": 0}), (MLP, {"width": 3})],
)
def test_bad_values_are_refused(kind: type[BaseModel], values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("relu", nn.ReLU()),
        ("leaky_relu", nn.LeakyReLU()),
        ("elu", nn.ELU()),
        ("softplus", nn.Softplus()),
        ("sigmoid", nn.Sigmoid()),
        ("tanh", nn.Tanh()),
    ],
)
def test_activations_are_those_of_torch(name: Activation, reference: nn.Module) -> None:
    values = torch.linspace(-3, 3, 13)
    assert torch.equal(activate(name, values), reference(values))


def test_normalizations_agree_with_torch() -> None:
    features = torch.randn(4, 12, 5, 6, dtype=torch.float64, generator=keyed_generator(0)) * 3 + 1
    gain, shift = torch.randn(2, 12, dtype=torch.float64, generator=keyed_generator(1))
    over_batch = F.batch_norm(features, None, None, gain, shift, training=True)
    torch.testing.assert_close(normalize_by(features, batch_statistics(features), gain, shift), over_batch)
    over_groups = F.group_norm(features, 3, gain, shift)
    torch.testing.assert_close(normalize_over_groups(features, gain, shift, channels_per_group=4), over_groups)
    # 12 channels in groups of gcd(12, 8) = 4.
    torch.testing.assert_close(normalize_over_groups(features, gain, shift), over_groups)


def small_module() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))


def test_a_module_computes_what_it_computes_by_itself() -> None:
    module = small_module()
    model = TorchModule(module)
    assert isinstance(model, Model)
    parameters = model.initialize((1, 8, 8), 3, keyed_generator(0))
    images = torch.rand(5, 1, 8, 8, generator=keyed_generator(1))
    module.load_state_dict(parameters, strict=True)
    torch.testing.assert_close(model(parameters, images), module(images))
    doubled = {name: value * 2 for name, value in parameters.items()}
    assert not torch.equal(model(doubled, images), module(images))


def test_a_module_starts_by_the_generator_and_leaves_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    one, again, other = (
        TorchModule(small_module()).initialize((1, 8, 8), 3, keyed_generator(seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    before = torch.get_rng_state()
    TorchModule(module := small_module())
    after_construction = torch.get_rng_state()
    TorchModule(module).initialize((1, 8, 8), 3, keyed_generator(0))
    assert torch.equal(after_construction, torch.get_rng_state())
    assert not torch.equal(before, after_construction), "torch draws when it makes a layer"
    torch.set_rng_state(state)


class Branches(nn.Module):
    """A body that somebody called `head`, before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.head(images.flatten(1)).tanh())
        return logits


@pytest.mark.parametrize(
    ("module", "size", "head", "body"),
    [
        (small_module, 8, {"3.weight", "3.bias"}, {"0.weight", "0.bias"}),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)), 4, {"1.weight"}, set()),
        (Branches, 4, {"classifier.weight", "classifier.bias"}, {"head.weight", "head.bias"}),
    ],
    ids=["convolution", "linear", "misnamed"],
)
def test_anil_adapts_the_last_layer_of_a_module(
    module: Callable[[], nn.Module], size: int, head: set[str], body: set[str]
) -> None:
    model = TorchModule(module())
    parameters = model.initialize((1, size, size), 3, keyed_generator(0))
    assert set(parameters) == head | body
    assert set(head_of(model)) == head
    images, labels = torch.rand(3, 1, size, size, generator=keyed_generator(1)), torch.arange(3)
    adapted = anil().adapt(model, parameters, Episode(images, labels, images, labels))
    assert {name for name in adapted if not torch.equal(adapted[name], parameters[name])} == head


class Nameless:
    """A model that does not name its classifier."""

    def initialize(self, input_shape, ways, generator):  # type: ignore[no-untyped-def]
        return MLP().initialize(input_shape, ways, generator)

    def __call__(self, parameters, images):  # type: ignore[no-untyped-def]
        return MLP()(parameters, images)


def test_a_rule_that_adapts_the_classifier_needs_a_model_that_names_it() -> None:
    images, labels = torch.rand(3, 1, 4, 4, generator=keyed_generator(1)), torch.arange(3)
    parameters = Nameless().initialize((1, 4, 4), 3, keyed_generator(0))
    with pytest.raises(ValueError, match=r"^Nameless does not name the parameters of its classifier in a property"):
        anil().adapt(Nameless(), parameters, Episode(images, labels, images, labels))


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the module cannot be copied: does it hold computed tensors"):
        TorchModule(nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(16, 3))))


def test_a_module_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        TorchModule(nn.Flatten())
    with pytest.raises(ValueError, match=r"returns shape \(2, 3\) for 2 examples, 5 ways need \(2, 5\)"):
        TorchModule(small_module()).initialize((1, 8, 8), 5, keyed_generator(0))


IMAGES = torch.rand(5, 1, 8, 8, generator=keyed_generator(1))


def convolution(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *middle, nn.Flatten(), nn.Linear(256, 3))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_a_norm_uses_the_statistics_of_the_batch_and_the_users_module_stays_as_it_was(norm: nn.Module) -> None:
    module = convolution(norm)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = TorchModule(module)
    parameters = model.initialize((1, 8, 8), 3, keyed_generator(0))
    logits = model(parameters, IMAGES)
    assert torch.equal(logits, model(parameters, IMAGES))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.load_state_dict(parameters, strict=False)
    torch.testing.assert_close(logits, module(IMAGES))


def test_dropout_is_off_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    torch_module._say_once.cache_clear()
    model = TorchModule(convolution(nn.Dropout(0.5)))
    for _ in range(2):
        parameters = model.initialize((1, 8, 8), 3, keyed_generator(0))
    assert torch.equal(model(parameters, IMAGES), model(parameters, IMAGES))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["the model's dropout is off"]


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))


def test_lazy_layers_take_their_sizes_from_the_images() -> None:
    started, elsewhere = TorchModule(lazy()), TorchModule(lazy())
    parameters = started.initialize((1, 8, 8), 3, keyed_generator(0))
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {
        "0.weight": (4, 1, 3, 3),
        "0.bias": (4,),
        "1.weight": (4,),
        "1.bias": (4,),
        "3.weight": (3, 256),
        "3.bias": (3,),
    }
    # A learner's process is sent parameters, and never starts any.
    assert torch.equal(elsewhere(parameters, IMAGES), started(parameters, IMAGES))
    again = started.initialize((1, 8, 8), 3, keyed_generator(0))
    assert all(torch.equal(value, again[name]) for name, value in parameters.items())


def test_what_is_frozen_is_not_learned_and_what_is_tied_is_learned_once() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 3))
    module[1].bias.requires_grad_(False)
    module[3].weight = module[1].weight
    model = TorchModule(module)
    parameters = model.initialize((1, 8, 8), 3, keyed_generator(0))
    assert set(parameters) == {"1.weight", "3.bias", "4.weight", "4.bias"}
    with torch.no_grad():
        module[1].weight.copy_(parameters["1.weight"])
        module[3].bias.copy_(parameters["3.bias"])
        module[4].weight.copy_(parameters["4.weight"])
        module[4].bias.copy_(parameters["4.bias"])
    torch.testing.assert_close(model(parameters, IMAGES), module(IMAGES))


def test_attention_has_second_derivatives() -> None:
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = TorchModule(nn.Sequential(nn.Flatten(1, 2), attention, nn.Flatten(), nn.Linear(64, 3)))
    parameters = model.initialize((1, 8, 8), 3, keyed_generator(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    gradient, _ = MAML().meta_gradient(model, parameters, Episode(IMAGES, labels, IMAGES, labels))
    assert all(value.isfinite().all() for value in gradient.values())


class Asks(nn.Module):
    """A linear classifier whose forward can be anything."""

    def __init__(self, forward: Callable[..., object], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3, dtype=dtype)
        self.forward = lambda *given: forward(self.linear, *given)
        if forward.__code__.co_argcount > 2:
            self.forward = lambda images, mask: forward(self.linear, images, mask)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(3, 2, 3)),
            r"cannot take examples of shape \(1, 8, 8\): .*3 channels.*choose",
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(9), nn.Linear(4, 3)), r"cannot take examples of shape"),
        (lambda: Asks(lambda linear, images, mask: linear(images)), "a batch of examples and nothing else.*'mask'"),
        (lambda: Asks(lambda linear, images: (linear(images.flatten(1)),) * 2), "returns a tuple, not a tensor"),
        (lambda: Asks(lambda linear, images: linear(images.flatten(1)).T), r"returns shape \(3, 2\) for 2 examples"),
        (lambda: Asks(lambda linear, images: linear(images.flatten(1)).detach()), "do not depend on its parameters"),
        (lambda: Asks(lambda linear, images: 1 / 0), r"cannot take examples of shape .*division"),
        (lambda: Asks(lambda linear, images: linear(images), torch.float64), "linear.weight is torch.float64"),
    ],
    ids=["channels", "features", "arguments", "tuple", "transposed", "detached", "raises", "float64"],
)
def test_a_module_that_cannot_is_told_in_one_line(module: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        TorchModule(module()).initialize((1, 8, 8), 3, keyed_generator(0))
    assert "\n" not in str(caught.value)
