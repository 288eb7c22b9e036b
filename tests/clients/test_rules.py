"""What every rule does beside the arithmetic; that its derivatives are right, `test_derivatives.py` holds."""

import pytest
import torch
from torch import Tensor, nn

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import MLP, Conv4, LeNet, Model, TorchModule
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML, Reptile, anil, first_order_maml

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 1, 16

MODELS: dict[str, Model] = {
    "mlp-relu": MLP(hidden=(8, 6)),
    "mlp-tanh-unbiased": MLP(hidden=(8,), activation="tanh", bias=False),
    "lenet-sigmoid": LeNet(filters=3),
    "lenet-softplus": LeNet(filters=3, activation="softplus", weight_bound=None),
    "conv4-batch": Conv4(filters=4),
    "conv4-batch-max": Conv4(filters=4, downsample="max"),
    "conv4-group": Conv4(filters=4, normalization="group"),
    "conv4-none": Conv4(filters=4, normalization="none"),
    "module": TorchModule(
        nn.Sequential(nn.Conv2d(1, 3, 4, 2), nn.GroupNorm(1, 3), nn.Softplus(), nn.Flatten(), nn.Linear(147, WAYS))
    ),
}
RULES: dict[str, MAML | Reptile] = {
    "maml": MAML(inner_steps=2, inner_rate=0.3),
    "fomaml": first_order_maml(inner_steps=2, inner_rate=0.3),
    "anil": anil(inner_steps=2, inner_rate=0.3),
    "reptile": Reptile(inner_steps=3, inner_rate=0.2),
}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def start(model: Model) -> Parameters:
    fresh = model.initialize((1, SIDE, SIDE), WAYS, keyed_generator("start"))
    return {name: value.double() for name, value in fresh.items()}


def some_episode() -> Episode:
    def images(count: int, purpose: str) -> Tensor:
        return torch.rand(count, 1, SIDE, SIDE, dtype=torch.float64, generator=keyed_generator(purpose))

    positions = torch.arange(WAYS)
    return Episode(
        images(WAYS * SHOTS, "support"),
        positions.repeat_interleave(SHOTS),
        images(WAYS * QUERIES, "query"),
        positions.repeat_interleave(QUERIES),
    )


@rules
def test_every_inner_gradient_passes_the_perturbation_once_in_order(rule: MAML | Reptile) -> None:
    model = MODELS["mlp-tanh-unbiased"]
    parameters, episode = start(model), some_episode()
    seen: list[int] = []

    def perturb(gradient: Parameters, step: int) -> Parameters:
        seen.append(step)
        generator = keyed_generator("noise", step)
        return {
            name: value + 0.1 * torch.randn(value.shape, dtype=value.dtype, generator=generator)
            for name, value in gradient.items()
        }

    gradient, loss = rule.meta_gradient(model, parameters, episode, perturb)
    assert seen == list(range(rule.inner_steps))
    quiet, quiet_loss = rule.meta_gradient(model, parameters, episode)
    assert not torch.equal(loss, quiet_loss)
    assert any(not torch.equal(gradient[name], quiet[name]) for name in gradient)


def test_anil_leaves_the_body_where_it_is() -> None:
    model = MODELS["mlp-relu"]
    parameters = start(model)
    adapted = RULES["anil"].adapt(model, parameters, some_episode())
    assert list(adapted) == list(parameters)
    moved = {name for name in parameters if not torch.equal(adapted[name], parameters[name])}
    assert moved == {"head.weight", "head.bias"}


@models
def test_nothing_that_is_given_is_changed(model: Model) -> None:
    parameters, episode = start(model), some_episode()
    before = {name: value.clone() for name, value in parameters.items()}
    drawn = Episode(*(part.clone() for part in episode))
    for rule in RULES.values():
        rule.meta_gradient(model, parameters, episode)
    assert all(torch.equal(parameters[name], before[name]) for name in before)
    assert all(torch.equal(part, same) for part, same in zip(episode, drawn, strict=True))


def test_labels_may_be_probabilities() -> None:
    model = MODELS["mlp-relu"]
    parameters, episode = start(model), some_episode()
    soft = nn.functional.one_hot(episode.query_labels, WAYS).double()
    gradient, _ = RULES["maml"].meta_gradient(model, parameters, episode)
    again, _ = RULES["maml"].meta_gradient(model, parameters, episode._replace(query_labels=soft))
    torch.testing.assert_close(gradient, again)
