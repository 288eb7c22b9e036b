"""What every rule does beside the arithmetic; that its derivatives are right, `test_derivatives.py` holds."""

import pytest
import torch
from torch import Tensor, nn

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import MLP, Conv4, LeNet, Model, TorchModule, head_of
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import (
    MAML,
    FedAvg,
    FedMeNF,
    FedSGD,
    Reptile,
    adapted_names,
    anil,
    first_order_maml,
    inner_steps,
    outer_point,
    support_entry,
)

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
AnyRule = MAML | Reptile | FedSGD | FedAvg
RULES: dict[str, AnyRule] = {
    "maml": MAML(inner_steps=2, inner_rate=0.3),
    "fomaml": first_order_maml(inner_steps=2, inner_rate=0.3),
    "anil": anil(inner_steps=2, inner_rate=0.3),
    "reptile": Reptile(inner_steps=3, inner_rate=0.2),
    "fedsgd": FedSGD(),
    "fedavg": FedAvg(epochs=2, batch=4, rate=0.2),
    "fedmenf": FedMeNF(inner_steps=2, inner_rate=0.3),
}
GRADIENTS = {"maml": 2, "fomaml": 2, "anil": 2, "reptile": 3, "fedsgd": 1, "fedavg": 6, "fedmenf": 2}
"""How many gradients a learner takes that an inner defense can act on, of nine examples."""

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


@pytest.mark.parametrize("name", RULES)
def test_every_inner_gradient_passes_the_perturbation_once_in_order(name: str) -> None:
    rule = RULES[name]
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
    assert seen == list(range(GRADIENTS[name]))
    quiet, quiet_loss = rule.meta_gradient(model, parameters, episode)
    # The loss of FedSGD is the one before its only step.
    assert torch.equal(loss, quiet_loss) == (name == "fedsgd")
    assert any(not torch.equal(gradient[name], quiet[name]) for name in gradient)


@pytest.mark.parametrize("order", [1, 2])
def test_fedmenf_counts_only_what_the_adaptation_made_better(order: int) -> None:
    model = MODELS["mlp-tanh-unbiased"]
    parameters, episode = start(model), some_episode()
    adapting = MAML(order=order, inner_rate=0.3)
    gradient, loss = FedMeNF(order=order, inner_rate=0.3, gamma=0.7).meta_gradient(model, parameters, episode)
    of_maml, same_loss = adapting.meta_gradient(model, parameters, episode)
    nothing = torch.zeros_like(episode.support_inputs[:0])
    before, _ = FedSGD().meta_gradient(
        model, parameters, episode._replace(support_inputs=nothing, support_labels=episode.support_labels[:0])
    )
    assert torch.equal(loss, same_loss)
    for name, value in gradient.items():
        torch.testing.assert_close(value, of_maml[name] - 0.7 * before[name])


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


@rules
@pytest.mark.parametrize("soft", ["support", "query", "both"])
def test_labels_of_either_set_may_be_probabilities(rule: AnyRule, soft: str) -> None:
    model = MODELS["mlp-tanh-unbiased"]
    parameters, episode = start(model), some_episode()
    sets = ("support_labels", "query_labels") if soft == "both" else (f"{soft}_labels",)
    told = episode._replace(**{one: nn.functional.one_hot(getattr(episode, one), WAYS).double() for one in sets})
    gradient, loss = rule.meta_gradient(model, parameters, episode)
    again, same_loss = rule.meta_gradient(model, parameters, told)
    torch.testing.assert_close(again, gradient)
    torch.testing.assert_close(same_loss, loss)


def test_full_batches_of_federated_averaging_share_what_reptile_and_fedsgd_share() -> None:
    model = MODELS["mlp-relu"]
    given = model, start(model), some_episode()
    for batch in (None, 9, 100):
        three, _ = FedAvg(epochs=3, batch=batch, rate=0.2).meta_gradient(*given)
        torch.testing.assert_close(three, Reptile(inner_steps=3, inner_rate=0.2).meta_gradient(*given)[0])
        one, _ = FedAvg(batch=batch, rate=0.2).meta_gradient(*given)
        torch.testing.assert_close(one, FedSGD().meta_gradient(*given)[0])


def test_federated_averaging_deals_its_examples_out_and_uses_each_once_an_epoch() -> None:
    """Nine examples in batches of at most four: three of three, for two epochs."""
    model = MODELS["mlp-relu"]
    parameters, episode = start(model), some_episode()
    images = torch.cat([episode.support_inputs, episode.query_inputs])
    labels = torch.cat([episode.support_labels, episode.query_labels])
    shared, _ = FedAvg(epochs=2, batch=4, rate=0.2).meta_gradient(model, parameters, episode)
    local = parameters
    for batch in ([0, 3, 6], [1, 4, 7], [2, 5, 8]) * 2:
        assert len(set(labels[batch].tolist())) > 1
        local = inner_steps(model, local, images[batch], labels[batch], 1, 0.2)
    for name, value in parameters.items():
        torch.testing.assert_close(value - 0.2 * shared[name], local[name])


class Theirs:
    """A rule of a user's own, with the two methods that a rule must have."""

    def meta_gradient(self, model, parameters, episode, perturb=None):  # type: ignore[no-untyped-def]
        return RULES["maml"].meta_gradient(model, parameters, episode, perturb)

    def adapt(self, model, parameters, episode, perturb=None):  # type: ignore[no-untyped-def]
        return RULES["maml"].adapt(model, parameters, episode, perturb)


@pytest.mark.parametrize(
    ("rule", "entry", "at"),
    [
        (RULES["maml"], "curvature", "adapted"),
        (RULES["fomaml"], "parameters", "adapted"),
        (RULES["anil"], "curvature", "adapted"),
        (RULES["reptile"], "direct", "adapted"),
        (RULES["fedsgd"], "direct", "sent"),
        (FedAvg(epochs=4, rate=0.2), "direct", "between"),
        (RULES["fedmenf"], "curvature", "adapted"),
        (Theirs(), "parameters", "adapted"),
    ],
    ids=[*RULES, "own"],
)
def test_a_rule_states_how_the_support_set_enters_and_where_gradients_are_taken(
    rule: AnyRule | Theirs, entry: str, at: str
) -> None:
    model = MODELS["mlp-relu"]
    parameters, episode = start(model), some_episode()
    head = set(head_of(model))
    assert support_entry(rule) == entry
    adapted = {RULES["anil"]: head, RULES["fedsgd"]: set()}.get(rule, set(parameters))
    assert adapted_names(rule, model, parameters) == adapted
    found = outer_point(rule, model, parameters, episode)
    if at == "between":
        trail = [
            inner_steps(
                model,
                parameters,
                torch.cat([episode.support_inputs, episode.query_inputs]),
                torch.cat([episode.support_labels, episode.query_labels]),
                steps,
                0.2,
            )
            for steps in range(4)
        ]
        wanted = {name: sum(place[name] for place in trail) / 4 for name in parameters}
    else:
        wanted = parameters if at == "sent" else rule.adapt(model, parameters, episode)
    torch.testing.assert_close(found, wanted)
