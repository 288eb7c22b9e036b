"""Every meta-gradient is the derivative that it claims to be: float64 central differences, every model and rule.

The differences use nothing but values of the losses and, for what second-order rules differentiate through, the
adapted parameters, which are themselves held to differences of the loss.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import MLP, Conv4, LeNet, Model, TorchModule
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML, Reptile, Rule, anil, cross_entropy, first_order_maml

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 1, 16
# A step that crosses a kink of ReLU or max-pooling measures the jump. A smaller one does not, and a wrong
# derivative is wrong at every step.
STEPS = (1e-5, 1e-6, 1e-7)
# Differences agree with a right derivative to 1e-8; the errors of torch's native norms are 1e-3 and more.
TOLERANCE = 1e-6

MODELS: dict[str, Model] = {
    "mlp-relu": MLP(hidden=(8, 6)),
    "mlp-tanh-unbiased": MLP(hidden=(8,), activation="tanh", bias=False),
    "lenet-sigmoid": LeNet(filters=3),
    "lenet-softplus": LeNet(filters=3, activation="softplus", weight_bound=None),
    "conv4-batch": Conv4(filters=4),
    "conv4-batch-max": Conv4(filters=4, downsample="max"),
    "conv4-group": Conv4(filters=4, normalisation="group"),
    "conv4-none": Conv4(filters=4, normalisation="none"),
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


def normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=keyed_generator(*key))


def like(parameters: Parameters, *key: int | str) -> Parameters:
    return {name: normal(tuple(value.shape), name, *key) for name, value in parameters.items()}


def start(model: Model) -> Parameters:
    """Parameters away from the special points (zero biases, gains of one) of a fresh initialisation."""
    fresh = model.initialise((1, SIDE, SIDE), WAYS, keyed_generator("start"))
    noise = like(fresh, "start")
    return {name: value.double() + 0.05 * noise[name] for name, value in fresh.items()}


def some_episode(number: int = 0) -> Episode:
    def images(count: int, purpose: str) -> Tensor:
        generator = keyed_generator(number, purpose)
        return torch.rand(count, 1, SIDE, SIDE, dtype=torch.float64, generator=generator)

    positions = torch.arange(WAYS)
    return Episode(
        images(WAYS * SHOTS, "support"),
        positions.repeat_interleave(SHOTS),
        images(WAYS * QUERIES, "query"),
        positions.repeat_interleave(QUERIES),
    )


def plus(parameters: Parameters, direction: Parameters, length: float) -> Parameters:
    return {name: value + length * direction[name] for name, value in parameters.items()}


def inner(one: Parameters, other: Parameters) -> Tensor:
    return torch.stack([(one[name] * other[name]).sum() for name in one]).sum()


def slope(function: Callable[[float], Tensor], step: float) -> float:
    """The derivative of `function` at 0, by central differences of fourth order."""
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return float((8 * near - far) / (12 * step))


def assert_slope(derivative: Tensor, function: Callable[[float], Tensor], scale: Tensor) -> None:
    """Hold `derivative` to the slope of `function`, relative to the length `scale` of the gradient.

    Along a random direction the slope is about as large as the gradient is long; a direction that happens to be
    nearly perpendicular must not make the test stricter than the arithmetic.
    """
    claimed = float(derivative)
    bound = TOLERANCE * max(abs(claimed), 0.1 * float(scale))
    slopes = []
    for step in STEPS:
        slopes.append(slope(function, step))
        if abs(claimed - slopes[-1]) <= bound:
            return
    raise AssertionError(f"the derivative is {claimed}, differences give {slopes}")


def assert_gradient(gradient: Parameters, function: Callable[[Parameters], Tensor], at: Parameters) -> None:
    """Hold `gradient` to differences of `function` at `at`, along random directions and every parameter's own."""
    length = inner(gradient, gradient).sqrt()
    directions = [(like(at, "direction", number), length) for number in range(2)]
    for name in at:
        alone = {other: torch.zeros_like(value) for other, value in at.items()}
        alone[name] = normal(tuple(at[name].shape), "direction", name)
        # Some gradients are zero (a bias before batch normalisation), differences never quite.
        directions.append((alone, torch.maximum(gradient[name].norm(), 1e-2 * length)))
    for direction, scale in directions:

        def along(length: float, direction: Parameters = direction) -> Tensor:
            return function(plus(at, direction, length))

        assert_slope(inner(gradient, direction), along, scale)


def loss_at(model: Model, images: Tensor, labels: Tensor) -> Callable[[Parameters], Tensor]:
    return lambda parameters: cross_entropy(model, parameters, images, labels)


@models
def test_an_inner_step_follows_the_gradient_of_the_support_loss(model: Model) -> None:
    parameters, episode = start(model), some_episode()
    adapted = MAML(inner_steps=1, inner_rate=0.3).adapt(model, parameters, episode)
    gradient = {name: (value - adapted[name]) / 0.3 for name, value in parameters.items()}
    assert_gradient(gradient, loss_at(model, episode.support_images, episode.support_labels), parameters)


@models
@pytest.mark.parametrize("name", ["maml", "anil"])
def test_second_order_differentiates_through_the_adaptation(model: Model, name: str) -> None:
    rule, parameters, episode = RULES[name], start(model), some_episode()

    def loss_after_adaptation(parameters: Parameters) -> Tensor:
        adapted = rule.adapt(model, parameters, episode)
        return cross_entropy(model, adapted, episode.query_images, episode.query_labels)

    gradient, loss = rule.meta_gradient(model, parameters, episode)
    torch.testing.assert_close(loss, loss_after_adaptation(parameters))
    assert_gradient(gradient, loss_after_adaptation, parameters)


@models
def test_first_order_is_the_query_gradient_at_the_adapted_parameters(model: Model) -> None:
    rule, parameters, episode = RULES["fomaml"], start(model), some_episode()
    gradient, loss = rule.meta_gradient(model, parameters, episode)
    adapted = rule.adapt(model, parameters, episode)
    query_loss = loss_at(model, episode.query_images, episode.query_labels)
    torch.testing.assert_close(loss, query_loss(adapted))
    assert_gradient(gradient, query_loss, adapted)


@models
def test_reptile_is_the_sum_of_the_inner_gradients(model: Model) -> None:
    rule, parameters, episode = Reptile(inner_steps=3, inner_rate=0.2), start(model), some_episode()
    images = torch.cat([episode.support_images, episode.query_images])
    labels = torch.cat([episode.support_labels, episode.query_labels])
    whole = Episode(images, labels, images, labels)
    trail = [parameters] + [Reptile(inner_steps=n, inner_rate=0.2).adapt(model, parameters, whole) for n in (1, 2)]
    gradient, loss = rule.meta_gradient(model, parameters, episode)
    torch.testing.assert_close(loss, loss_at(model, images, labels)(rule.adapt(model, parameters, whole)))

    def sum_along_the_trail(moved: Parameters) -> Tensor:
        # One loss a place on the trail, all moved by the same amount, so the slope is that of the sum.
        step = {name: moved[name] - value for name, value in parameters.items()}
        return torch.stack([loss_at(model, images, labels)(plus(place, step, 1.0)) for place in trail]).sum()

    assert_gradient(gradient, sum_along_the_trail, parameters)


@models
@rules
@pytest.mark.parametrize("part", ["support_images", "query_images"])
def test_an_attack_can_differentiate_the_meta_gradient(model: Model, rule: Rule, part: str) -> None:
    parameters, episode = start(model), some_episode()
    observed, _ = rule.meta_gradient(model, parameters, some_episode(1))

    def match(images: Tensor) -> Tensor:
        gradient, _ = rule.meta_gradient(model, parameters, episode._replace(**{part: images}))
        lengths = (inner(gradient, gradient) * inner(observed, observed)).sqrt()
        return 1 - inner(gradient, observed) / lengths

    images = getattr(episode, part)
    derivative = grad(match)(images)
    for number in range(2):
        direction = normal(tuple(images.shape), "image direction", number)

        def along(length: float, direction: Tensor = direction) -> Tensor:
            return match(images + length * direction)

        assert_slope((derivative * direction).sum(), along, derivative.norm())


@models
@rules
def test_a_batch_of_episodes_gives_what_each_gives_alone(model: Model, rule: Rule) -> None:
    parameters = start(model)
    episodes = [some_episode(number) for number in range(3)]
    batch = Episode(*(torch.stack(parts) for parts in zip(*episodes, strict=True)))
    gradients, losses = vmap(lambda episode: rule.meta_gradient(model, parameters, episode))(batch)
    for row, episode in enumerate(episodes):
        gradient, loss = rule.meta_gradient(model, parameters, episode)
        torch.testing.assert_close(losses[row], loss, rtol=1e-10, atol=1e-12)
        for name, value in gradient.items():
            torch.testing.assert_close(gradients[name][row], value, rtol=1e-9, atol=1e-11)


@rules
def test_noise_on_the_inner_gradients_is_a_constant_of_the_derivative(rule: MAML | Reptile) -> None:
    model = MODELS["mlp-tanh-unbiased"]
    parameters, episode = start(model), some_episode()
    seen: list[int] = []

    def perturb(gradient: Parameters, step: int) -> Parameters:
        seen.append(step)
        return {name: value + 0.1 * normal(tuple(value.shape), name, step) for name, value in gradient.items()}

    gradient, loss = rule.meta_gradient(model, parameters, episode, perturb)
    assert seen == list(range(rule.inner_steps))
    quiet, quiet_loss = rule.meta_gradient(model, parameters, episode)
    assert not torch.equal(loss, quiet_loss)
    assert any(not torch.equal(gradient[name], quiet[name]) for name in gradient)
    if isinstance(rule, MAML) and rule.order == 2:
        assert_gradient(
            gradient,
            lambda moved: cross_entropy(
                model, rule.adapt(model, moved, episode, perturb), episode.query_images, episode.query_labels
            ),
            parameters,
        )


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
    for rule in RULES.values():
        rule.meta_gradient(model, parameters, episode)
    assert all(torch.equal(parameters[name], before[name]) for name in before)


def test_labels_may_be_probabilities() -> None:
    model = MODELS["mlp-relu"]
    parameters, episode = start(model), some_episode()
    soft = nn.functional.one_hot(episode.query_labels, WAYS).double()
    gradient, _ = RULES["maml"].meta_gradient(model, parameters, episode)
    again, _ = RULES["maml"].meta_gradient(model, parameters, episode._replace(query_labels=soft))
    torch.testing.assert_close(gradient, again)


def test_these_tests_would_see_an_error_of_one_in_ten_thousand() -> None:
    model, rule = MODELS["mlp-tanh-unbiased"], RULES["maml"]
    parameters, episode = start(model), some_episode()
    gradient, _ = rule.meta_gradient(model, parameters, episode)

    def loss_after_adaptation(parameters: Parameters) -> Tensor:
        adapted = rule.adapt(model, parameters, episode)
        return cross_entropy(model, adapted, episode.query_images, episode.query_labels)

    for name in gradient:
        wrong = gradient | {name: gradient[name] * (1 + 1e-4)}
        with pytest.raises(AssertionError):
            assert_gradient(wrong, loss_after_adaptation, parameters)
