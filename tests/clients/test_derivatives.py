"""Every derivative is the one that it claims to be: float64 central differences, every model, rule and way.

Every pair of a model and a rule is held with `-m slow`, the telling ones always.

What is held, from the bottom up; each kind uses only values of what the kind before it has held:

- an inner step follows the gradient of its loss: differences of the loss;
- the meta-gradient of MAML and ANIL is the derivative of the loss after adaptation: differences of that loss; those
  of first-order MAML, Reptile and FedAvg, which are the gradient of no scalar, are held to their definitions;
- the derivative that an attack takes of the meta-gradient: differences of the matching loss.

The ways in which a batch of meta-gradients is computed are each held, and to each other.

What torch 2.15.0 does by itself on a CPU (measured below: two convolutions, MAML of two inner steps): the derivative
of a second-order meta-gradient with respect to the support images, a third derivative, is wrong through native batch
norm (by 8 % of its length), layer norm (3 %) and instance norm (16 %), in a loop as under `vmap`. Native group norm
is right, and so is every native norm up to the second derivative: `vmap` + second order + an affine batch or instance
norm, wrong in torch 2.13, is right.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import debug_unwrap, grad, vmap
from torch.overrides import TorchFunctionMode

from metaleak.attacks.inversion.matching import Loss, matching_loss
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import MLP, Conv4, LeNet, Model, TorchModule, head_of
from metaleak.clients.models.normalization import batch_statistics, normalize_by, normalize_over_groups
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import (
    MAML,
    FedAvg,
    FedSGD,
    Perturb,
    Reptile,
    anil,
    cross_entropy,
    first_order_maml,
    support_entry,
)
from metaleak.defenses import Noise, RandomSource

WAYS, SHOTS, QUERIES = 3, 2, 1
COHORT, CHUNK = 3, 2
# The learner whose derivatives are held to differences: alone in its chunk, last in its batch.
LAST = COHORT - 1

TOLERANCE = 1e-7
"""Largest error, as a share of a derivative's usual size along a random direction. Right ones are below 1e-8."""

STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""Steps of the differences: the largest that crosses no kink of ReLU or max-pooling is the one that counts."""


# Models, rules and ways.

MODELS: dict[str, Model] = {
    "mlp-relu": MLP(hidden=(8, 6)),
    "mlp-leaky-relu": MLP(hidden=(8, 6), activation="leaky_relu"),
    "mlp-elu": MLP(hidden=(8, 6), activation="elu"),
    "mlp-softplus": MLP(hidden=(8, 6), activation="softplus"),
    "mlp-sigmoid": MLP(hidden=(8, 6), activation="sigmoid"),
    "mlp-tanh": MLP(hidden=(8, 6), activation="tanh"),
    "mlp-tanh-unbiased": MLP(hidden=(8,), activation="tanh", bias=False),
    "mlp-linear": MLP(hidden=()),
    "lenet-sigmoid": LeNet(filters=3),
    "lenet-softplus": LeNet(filters=3, activation="softplus", weight_bound=None),
    "lenet-relu": LeNet(filters=3, activation="relu", weight_bound=None),
    "conv4-batch-stride": Conv4(filters=6),
    "conv4-batch-max": Conv4(filters=6, downsample="max"),
    "conv4-group-stride": Conv4(filters=6, normalization="group"),
    "conv4-group-max": Conv4(filters=6, normalization="group", downsample="max"),
    "conv4-none-stride": Conv4(filters=6, normalization="none"),
    "conv4-none-max": Conv4(filters=6, normalization="none", downsample="max"),
    "module": TorchModule(
        nn.Sequential(nn.Conv2d(1, 3, 4, 2), nn.GroupNorm(1, 3), nn.Softplus(), nn.Flatten(), nn.Linear(27, WAYS))
    ),
}
RATE = 0.3
AnyRule = MAML | Reptile | FedSGD | FedAvg
RULES: dict[str, AnyRule] = {
    "maml-1": MAML(inner_steps=1, inner_rate=RATE),
    "maml-2": MAML(inner_steps=2, inner_rate=RATE),
    "fomaml-1": first_order_maml(inner_steps=1, inner_rate=RATE),
    "fomaml-2": first_order_maml(inner_steps=2, inner_rate=RATE),
    "anil-1": anil(inner_steps=1, inner_rate=RATE),
    "anil-2": anil(inner_steps=2, inner_rate=RATE),
    "reptile-1": Reptile(inner_steps=1, inner_rate=RATE),
    "reptile-2": Reptile(inner_steps=2, inner_rate=RATE),
    "fedsgd-1": FedSGD(inner_rate=RATE),
    "fedavg-1": FedAvg(rate=RATE),
    "fedavg-2": FedAvg(rate=RATE, batch=5),
}

PerEpisode = Callable[[Episode], Parameters]
Way = Callable[[PerEpisode, Episode], Parameters]
"""From what is computed of one episode to the same of a batch of them, stacked."""


def one_by_one(function: PerEpisode, batch: Episode) -> Parameters:
    computed = [function(Episode(*rows)) for rows in zip(*batch, strict=True)]
    return {name: torch.stack([one[name] for one in computed]) for name in computed[0]}


def at_once(function: PerEpisode, batch: Episode) -> Parameters:
    stacked: Parameters = vmap(function)(batch)
    return stacked


def in_chunks(function: PerEpisode, batch: Episode) -> Parameters:
    stacked: Parameters = vmap(function, chunk_size=CHUNK)(batch)
    return stacked


WAYS_TO_COMPUTE: dict[str, Way] = {"loop": one_by_one, "vmap": at_once, "chunks": in_chunks}


def inner_defense(gradient: Parameters, step: int) -> Parameters:
    """Shrink a long gradient smoothly and add fixed noise: a defense with a derivative of its own."""
    shrink = 1 / (1 + inner(gradient, gradient))
    return {name: shrink * value + 0.05 * normal(value.shape, name, step) for name, value in gradient.items()}


def no_defense(gradient: Parameters, step: int) -> Parameters:
    return gradient


PERTURBS: dict[str, Perturb | None] = {"": None, "defended": inner_defense, "idle": no_defense}
WAYS_AND_PERTURBS = [*WAYS_TO_COMPUTE, "loop-defended"]

models = pytest.mark.parametrize("model", MODELS)
ways = pytest.mark.parametrize("way", WAYS_AND_PERTURBS)


REPRESENTATIVES = ("mlp-tanh", "conv4-batch-max")
"""A smooth model, and one with kinks, maxima and statistics of the batch."""


def rules(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rule", [rule for rule in RULES if not names or rule.split("-")[0] in names])


def models_and_rules(*names: str) -> pytest.MarkDecorator:
    """Every model with the first of the named rules at two inner steps, and every rule with two models.

    A rule knows a model by its values alone, and a model does not know the rule: what a pair adds to its two halves
    is the highest derivative that the rule takes of the model. Two steps of MAML take those of all other rules, so
    the remaining pairs repeat what these hold, and are slow.
    """
    names = names or tuple(dict.fromkeys(rule.split("-")[0] for rule in RULES))
    held = next(rule for rule in reversed(RULES) if rule.startswith(f"{names[0]}-"))
    return pytest.mark.parametrize(
        ("model", "rule"),
        [
            pytest.param(model, rule, marks=() if rule == held or model in REPRESENTATIVES else pytest.mark.slow)
            for model in MODELS
            for rule in RULES
            if rule.split("-")[0] in names
        ],
    )


# Where the derivatives are taken.


def normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=keyed_generator(*key))


def side(model: str) -> int:
    """The height and width of the images: small, but no norm of Conv4's may see a single pixel of each channel.

    Two numbers are normalized to about -1 and 1: a step, on which neither differences nor float32 say anything.
    """
    return 8 if not model.startswith("conv4") else 20 if model.endswith("stride") else 16


@cache
def start(model: str) -> Parameters:
    """Parameters away from the special points (zero biases, gains of one) of a fresh initialization."""
    fresh = MODELS[model].initialize((1, side(model), side(model)), WAYS, keyed_generator("start"))
    return {name: value.double() + 0.05 * normal(value.shape, "start", name) for name, value in fresh.items()}


def episode(side: int, number: int, soft: bool = False) -> Episode:
    """An episode of noise; `soft` labels are class probabilities, what an attack optimizes."""

    def images(count: int, purpose: str) -> Tensor:
        return torch.rand(count, 1, side, side, dtype=torch.float64, generator=keyed_generator(number, purpose))

    def labels(each: int, purpose: str) -> Tensor:
        if soft:
            return normal((WAYS * each, WAYS), number, purpose).softmax(dim=1)
        return torch.arange(WAYS).repeat_interleave(each)

    return Episode(
        images(WAYS * SHOTS, "support"),
        labels(SHOTS, "support labels"),
        images(WAYS * QUERIES, "query"),
        labels(QUERIES, "query labels"),
    )


def cohort(side: int, soft: bool = False, size: int = COHORT) -> Episode:
    episodes = [episode(side, number, soft) for number in range(COHORT)][-size:]
    return Episode(*(torch.stack(parts) for parts in zip(*episodes, strict=True)))


def whole(episode: Episode) -> Episode:
    """What Reptile and federated learning see: one set of images, support and query together."""
    images = torch.cat([episode.support_inputs, episode.query_inputs])
    labels = torch.cat([episode.support_labels, episode.query_labels])
    return Episode(images, labels, images, labels)


def inner(one: Parameters, other: Parameters) -> Tensor:
    return torch.stack([(one[name] * other[name]).sum() for name in one]).sum()


def plus(point: Parameters, direction: Parameters, length: float) -> Parameters:
    return {name: value + length * direction[name] if name in direction else value for name, value in point.items()}


def row(stacked: Parameters, number: int = -1) -> Parameters:
    return {name: value[number] for name, value in stacked.items()}


# Differences.


class Kinks(TorchFunctionMode):
    """Notes on which side of every kink a computation runs: signs at ReLU and its kin, places of the maxima.

    The mode sees the calls that a model makes, under `torch.func` too, so no model has to be prepared.
    """

    SIGNS = (F.relu, F.leaky_relu, F.elu)

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        options = kwargs or {}
        if func in self.SIGNS:
            self.sides.append(debug_unwrap(args[0]) > 0)
        elif func is F.max_pool2d:
            values = debug_unwrap(args[0])
            self.sides.append(F.max_pool2d(values, *args[1:], **{**options, "return_indices": True})[1])
        return func(*args, **options)

    def same(self, other: "Kinks") -> bool:
        pairs = zip(self.sides, other.sides, strict=True)
        return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def slope(function: Callable[[float], Tensor], middle: Kinks | None = None) -> float:
    """The derivative of `function` at 0, by central differences of fourth order within one smooth piece.

    The step is the largest of `STEPS` whose four points lie on the same side of every kink as 0 does; `middle` are
    the sides at 0, where they are known already.
    """
    middle = middle or kinks_of(lambda: function(0.0))
    for step in STEPS:
        values = {}
        for place in (-2, -1, 1, 2):
            with Kinks() as there:
                values[place] = function(place * step).double()
            if not middle.same(there):
                break
        else:
            return float((8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step))
    raise AssertionError("every step crosses a kink: take another point")


def kinks_of(function: Callable[[], Tensor]) -> Kinks:
    kinks = Kinks()
    with kinks:
        function()
    return kinks


def balanced(gradient: Parameters, *key: int | str) -> Parameters:
    """A random direction along which every tensor of `gradient` counts about as much as any other.

    So a small tensor's error is not hidden behind a large one's size. Largest entry 1. A gradient of zero (a bias
    before batch normalization) counts as one of a hundredth of the whole.
    """
    least = 1e-2 * inner(gradient, gradient).sqrt()
    direction = {
        name: normal(value.shape, "direction", name, *key) / torch.maximum(value.norm(), least)
        for name, value in gradient.items()
    }
    largest = max(float(value.abs().max()) for value in direction.values())
    return {name: value / largest for name, value in direction.items()}


Slopes = list[tuple[Parameters, float]]
"""Directions, and the slope of a function along each."""


def slopes(function: Callable[[Parameters], Tensor], at: Parameters, gradient: Parameters, count: int) -> Slopes:
    """Slopes of `function` along `count` directions made for `gradient`, whose tensors are some of those of `at`."""
    middle = kinks_of(lambda: function(at))
    directions = [balanced(gradient, number) for number in range(count)]

    def along(direction: Parameters) -> Callable[[float], Tensor]:
        return lambda length: function(plus(at, direction, length))

    return [(direction, slope(along(direction), middle)) for direction in directions]


def error(gradient: Parameters, measured: Slopes) -> float:
    """The worst difference of `gradient` from the slopes, as a share of the usual slope along such a direction.

    The usual slope is the root of the mean square over random signs. The slope itself would not do: a direction that
    happens to be nearly perpendicular must not make the test stricter than the arithmetic.
    """
    errors = []
    for direction, value in measured:
        products = torch.cat([(gradient[name] * along).flatten() for name, along in direction.items()])
        errors.append((products.sum() - value).abs() / products.norm())
    # Of a tensor, the maximum of numbers with a NaN among them is NaN.
    return float(torch.stack(errors).max())


def hold(gradient: Parameters, measured: Slopes, what: str = "the derivative") -> None:
    off = error(gradient, measured)
    # Not "off > TOLERANCE", which a NaN would pass.
    assert off <= TOLERANCE, f"{what} is off by {off:.1e} of its size"


def loss_at(model: Model, images: Tensor, labels: Tensor) -> Callable[[Parameters], Tensor]:
    return lambda parameters: cross_entropy(model, parameters, images, labels)


# Second order: what a learner sends.

LOSS = "the loss"


def sent_by(model: Model, rule: AnyRule, parameters: Parameters, perturb: Perturb | None = None) -> PerEpisode:
    """What is computed of an episode: the meta-gradient, and beside its tensors the loss."""

    def compute(episode: Episode) -> Parameters:
        gradient, loss = rule.meta_gradient(model, parameters, episode, perturb)
        return {**gradient, LOSS: loss}

    return compute


@cache
def cohort_computed(model: str, rule: str, way: str, dtype: torch.dtype = torch.float64) -> Parameters:
    """The meta-gradients and losses of the whole cohort, stacked, computed in one of the ways."""
    by, _, perturb = way.partition("-")
    parameters = {name: value.to(dtype) for name, value in start(model).items()}
    # A defense that does nothing leaves the loop as it is: one learner shows it.
    learners = cohort(side(model), size=1 if perturb == "idle" else COHORT)
    batch = Episode(*(part.to(dtype) if part.is_floating_point() else part for part in learners))
    return WAYS_TO_COMPUTE[by](sent_by(MODELS[model], RULES[rule], parameters, PERTURBS[perturb]), batch)


def computed(model: str, rule: str, way: str) -> tuple[Parameters, Tensor]:
    """The meta-gradient of the last learner of the cohort, computed in one of the ways, and the loss."""
    sent = row(cohort_computed(model, rule, way))
    return sent, sent.pop(LOSS)


def perturb_of(way: str) -> Perturb | None:
    return PERTURBS[way.partition("-")[2]]


@models
@pytest.mark.parametrize("way", ["loop", "loop-defended"])
@pytest.mark.parametrize("rule", ["maml", "anil", "reptile"])
def test_an_inner_step_follows_the_gradient_of_its_loss(model: str, rule: str, way: str) -> None:
    network, parameters = MODELS[model], start(model)
    seen = whole(episode(side(model), LAST)) if rule == "reptile" else episode(side(model), LAST)
    loss = loss_at(network, seen.support_inputs, seen.support_labels)
    once, twice = RULES[f"{rule}-1"], RULES[f"{rule}-2"]
    defend = perturb_of(way)
    place = parameters
    for step, after in enumerate((once, twice)):
        moved = after.adapt(network, parameters, seen, defend)
        undefended = once.adapt(network, place, seen)
        gradient = {
            name: (place[name] - value) / RATE
            for name, value in undefended.items()
            if rule != "anil" or name in head_of(network)
        }
        hold(gradient, slopes(loss, place, gradient, 2), f"step {step}")
        taken = gradient if defend is None else defend(gradient, step)
        for name, value in moved.items():
            wanted = place[name] - RATE * taken[name] if name in taken else parameters[name]
            torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)
        place = moved


@cache
def loss_after_adaptation(model: str, rule: str, defended: bool) -> tuple[Tensor, Slopes]:
    """The query loss of the adapted parameters, and its slopes at the start."""
    network, learner, seen = MODELS[model], RULES[rule], episode(side(model), LAST)
    query_loss = loss_at(network, seen.query_inputs, seen.query_labels)
    perturb = inner_defense if defended else None

    def value(parameters: Parameters) -> Tensor:
        return query_loss(learner.adapt(network, parameters, seen, perturb))

    gradient, _ = computed(model, rule, "loop")
    return value(start(model)), slopes(value, start(model), gradient, 2)


@models_and_rules("maml", "anil")
@ways
def test_second_order_differentiates_through_the_adaptation(model: str, rule: str, way: str) -> None:
    loss, measured = loss_after_adaptation(model, rule, way.endswith("defended"))
    gradient, computed_loss = computed(model, rule, way)
    torch.testing.assert_close(computed_loss, loss)
    hold(gradient, measured)


@models_and_rules("fomaml")
@ways
def test_first_order_is_the_query_gradient_at_the_adapted_parameters(model: str, rule: str, way: str) -> None:
    network, learner, seen = MODELS[model], RULES[rule], episode(side(model), LAST)
    adapted = learner.adapt(network, start(model), seen, perturb_of(way))
    query_loss = loss_at(network, seen.query_inputs, seen.query_labels)
    gradient, loss = computed(model, rule, way)
    torch.testing.assert_close(loss, query_loss(adapted))
    hold(gradient, slopes(query_loss, adapted, gradient, 2))


@models_and_rules("reptile")
@ways
def test_reptile_is_the_sum_of_the_inner_gradients(model: str, rule: str, way: str) -> None:
    network, parameters, seen = MODELS[model], start(model), whole(episode(side(model), LAST))
    steps, perturb = RULES[rule].inner_steps, perturb_of(way)
    trail = [parameters, *(RULES[f"reptile-{n}"].adapt(network, parameters, seen, perturb) for n in (1, 2))]
    loss = loss_at(network, seen.support_inputs, seen.support_labels)
    gradient, computed_loss = computed(model, rule, way)
    torch.testing.assert_close(computed_loss, loss(trail[steps]))
    if perturb is not None:
        # Each step's gradient, whose differences another test holds, defended before it is summed.
        steps_taken = [perturb(grad(loss)(place), step) for step, place in enumerate(trail[:steps])]
        for name, value in gradient.items():
            wanted = torch.stack([taken[name] for taken in steps_taken]).sum(dim=0)
            torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)
        return

    def sum_along_the_trail(moved: Parameters) -> Tensor:
        # One loss a place on the trail, all moved by the same amount, so the slope is that of the sum.
        move = {name: moved[name] - value for name, value in parameters.items()}
        return torch.stack([loss(plus(place, move, 1.0)) for place in trail[:steps]]).sum()

    hold(gradient, slopes(sum_along_the_trail, parameters, gradient, 2))


@models_and_rules("fedavg")
@ways
def test_fedavg_is_the_sum_of_the_gradients_of_its_batches(model: str, rule: str, way: str) -> None:
    network, parameters, perturb = MODELS[model], start(model), perturb_of(way)
    images, labels, *_ = whole(episode(side(model), LAST))
    steps = int(rule[-1])
    batches = [(images[step::steps], labels[step::steps]) for step in range(steps)]
    gradient, computed_loss = computed(model, rule, way)
    place, taken = parameters, []
    for step, (some, positions) in enumerate(batches):
        found: Parameters = grad(loss_at(network, some, positions))(place)
        hold(found, slopes(loss_at(network, some, positions), place, found, 1), f"step {step}")
        taken.append(found if perturb is None else perturb(found, step))
        place = plus(place, taken[-1], -RATE)
    torch.testing.assert_close(computed_loss, loss_at(network, images, labels)(place))
    for name, value in gradient.items():
        wanted = torch.stack([one[name] for one in taken]).sum(dim=0)
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)


@models_and_rules("fedsgd")
@ways
def test_fedsgd_is_the_gradient_of_the_loss_on_all_examples(model: str, rule: str, way: str) -> None:
    network, parameters, perturb = MODELS[model], start(model), perturb_of(way)
    images, labels, *_ = whole(episode(side(model), LAST))
    loss = loss_at(network, images, labels)
    gradient, computed_loss = computed(model, rule, way)
    torch.testing.assert_close(computed_loss, loss(parameters))
    if perturb is None:
        hold(gradient, slopes(loss, parameters, gradient, 2))
    else:
        torch.testing.assert_close(gradient, perturb(grad(loss)(parameters), 0))


@models_and_rules()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_the_ways_agree(model: str, rule: str, dtype: torch.dtype, tolerance: float) -> None:
    alone = cohort_computed(model, rule, "loop", dtype)
    for way in ("vmap", "chunks", "loop-idle"):
        together = cohort_computed(model, rule, way, dtype)
        for learner in range(-len(together[LOSS]), 0):
            right, other = row(alone, learner), row(together, learner)
            length = torch.cat([value.flatten() for name, value in right.items() if name != LOSS]).norm()
            for name, value in other.items():
                # Against the tensor's own size; one that should be zero, against a part of the whole gradient's.
                off = float((value - right[name]).norm() / torch.maximum(right[name].norm(), 1e-2 * length))
                assert value.dtype == dtype
                assert off <= tolerance, f"{way}, learner {learner}, {name}: off by {off:.1e}"


@rules()
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_shipped_noise_on_the_inner_gradients_is_a_constant_of_the_derivative(rule: str, law: str) -> None:
    """The noise's scale is read off the gradient, but does not count as a function of it."""
    network, learner, parameters = MODELS["mlp-tanh"], RULES[rule], start("mlp-tanh")
    seen = episode(side("mlp-tanh"), LAST)
    defense = Noise.model_validate({"place": "inner", "law": law, "scale": 0.5})

    def noisy(gradient: Parameters, step: int) -> Parameters:
        return defense(gradient, RandomSource.of("noise", step))

    drawn: list[Parameters] = []

    def keep(gradient: Parameters, step: int) -> Parameters:
        defended = noisy(gradient, step)
        drawn.append({name: defended[name] - value for name, value in gradient.items()})
        return defended

    def constant(gradient: Parameters, step: int) -> Parameters:
        return {name: value + drawn[step][name] for name, value in gradient.items()}

    # Adaptation by itself is not differentiated, so that what is kept is plain numbers.
    learner.adapt(network, parameters, whole(seen) if support_entry(learner) == "direct" else seen, keep)
    assert len(drawn) == int(rule[-1])
    gradient, loss = learner.meta_gradient(network, parameters, seen, noisy)
    wanted, wanted_loss = learner.meta_gradient(network, parameters, seen, constant)
    torch.testing.assert_close(loss, wanted_loss)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)
    quiet, quiet_loss = learner.meta_gradient(network, parameters, seen)
    assert apart(gradient, quiet) > 1e-3
    # The loss of FedSGD is the one before its only step.
    assert torch.equal(loss, quiet_loss) == isinstance(learner, FedSGD)


# Third order: what an attack differentiates.

KNOWS: dict[str, tuple[bool, Loss, tuple[str, ...]]] = {
    "labels": (False, "cosine", ("support_inputs", "query_inputs")),
    "nothing": (True, "squared", ("support_inputs", "support_labels", "query_inputs", "query_labels")),
}
"""What the attack knows: whether labels are probabilities, the matching loss, and what it takes the derivative of."""


def matching(
    model: Model, rule: AnyRule, parameters: Parameters, observed: Parameters, loss: Loss
) -> Callable[[Episode], Tensor]:
    def distance(episode: Episode) -> Tensor:
        return matching_loss(rule.meta_gradient(model, parameters, episode)[0], observed, loss, "joint")

    return distance


def derivative_of(distance: Callable[[Episode], Tensor], asked: tuple[str, ...]) -> PerEpisode:
    """The derivative of a function of an episode, with respect to the tensors that are asked for."""

    def compute(episode: Episode) -> Parameters:
        derivative: Parameters = grad(lambda parts: distance(episode._replace(**parts)))(
            {name: getattr(episode, name) for name in asked}
        )
        return derivative

    return compute


def hold_an_attack(
    model: Model, rule: AnyRule, parameters: Parameters, side: int, knows: str, observed: Parameters
) -> None:
    """Hold the derivatives of the matching loss, through the loop and through `vmap`, to its differences."""
    soft, loss, asked = KNOWS[knows]
    batch = cohort(side, soft, size=2)
    seen = Episode(*(part[-1] for part in batch))
    distance = matching(model, rule, parameters, observed, loss)
    derivative = derivative_of(distance, asked)
    loop, stacked = derivative(seen), row(at_once(derivative, batch))
    measured = slopes(lambda parts: distance(seen._replace(**parts)), seen._asdict(), loop, 1)
    hold(loop, measured, "the derivative through the loop")
    hold(stacked, measured, "the derivative through vmap")


@models_and_rules()
@pytest.mark.parametrize("knows", KNOWS)
def test_an_attack_can_differentiate_the_meta_gradient(model: str, rule: str, knows: str) -> None:
    observed = row(cohort_computed(model, rule, "loop"), 0)
    observed.pop(LOSS)
    hold_an_attack(MODELS[model], RULES[rule], start(model), side(model), knows, observed)


# The test itself.


def test_an_error_of_one_in_ten_thousand_in_any_tensor_is_seen() -> None:
    gradient, _ = computed("mlp-tanh", "maml-2", "loop")
    _, measured = loss_after_adaptation("mlp-tanh", "maml-2", False)
    hold(gradient, measured)
    for name in gradient:
        with pytest.raises(AssertionError, match="off by"):
            hold(gradient | {name: gradient[name] * (1 + 1e-4)}, measured)


def test_not_a_number_is_seen() -> None:
    gradient, _ = computed("mlp-tanh", "maml-2", "loop")
    _, measured = loss_after_adaptation("mlp-tanh", "maml-2", False)
    with pytest.raises(AssertionError, match="off by nan"):
        hold({name: value * torch.nan for name, value in gradient.items()}, measured)
    with pytest.raises(AssertionError, match="off by nan"):
        hold(gradient, [*measured, (gradient, math.nan)])


def apart(one: Parameters, other: Parameters) -> float:
    """How far `one` lies from `other`, as a share of it."""
    difference = {name: value - other[name] for name, value in one.items()}
    return float((inner(difference, difference) / inner(other, other)).sqrt())


@dataclass(frozen=True)
class Wrong:
    """A model that is right in its values and in every derivative but the one of `order`."""

    model: Model
    order: int
    size: float

    def initialize(self, input_shape: tuple[int, int, int], ways: int, generator: torch.Generator) -> Parameters:
        return self.model.initialize(input_shape, ways, generator)

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        logits = self.model(parameters, images)
        return logits + self.size * (logits - logits.detach()) ** self.order


@pytest.mark.parametrize(("order", "size"), [(1, 1e-3), (2, 2e-2), (3, 5e-3)], ids=["first", "second", "third"])
def test_an_error_of_a_thousandth_in_one_order_is_seen_by_the_test_of_that_order(order: int, size: float) -> None:
    rule, parameters, seen = MAML(inner_rate=RATE), start("mlp-tanh"), episode(side("mlp-tanh"), LAST)
    right, wrong = MODELS["mlp-tanh"], Wrong(MODELS["mlp-tanh"], order, size)
    observed = row(cohort_computed("mlp-tanh", "maml-1", "loop"), 0)
    observed.pop(LOSS)
    support_loss = loss_at(wrong, seen.support_inputs, seen.support_labels)

    def loss_after_adaptation(moved: Parameters) -> Tensor:
        return loss_at(wrong, seen.query_inputs, seen.query_labels)(rule.adapt(wrong, moved, seen))

    def first(model: Model) -> Parameters:
        gradient: Parameters = grad(loss_at(model, seen.support_inputs, seen.support_labels))(parameters)
        return gradient

    def second(model: Model) -> Parameters:
        return rule.meta_gradient(model, parameters, seen)[0]

    def third(model: Model) -> Parameters:
        distance = matching(model, rule, parameters, observed, "cosine")
        return derivative_of(distance, ("support_inputs",))(seen)

    checks: dict[Callable[[Model], Parameters], Callable[[], None]] = {
        first: lambda: hold(first(wrong), slopes(support_loss, parameters, first(right), 2)),
        second: lambda: hold(second(wrong), slopes(loss_after_adaptation, parameters, second(right), 2)),
        third: lambda: hold_an_attack(wrong, rule, parameters, side("mlp-tanh"), "labels", observed),
    }
    *before, (derivative, check) = list(checks.items())[:order]
    for _, holds in before:
        holds()
    assert 1e-4 < apart(derivative(wrong), derivative(right)) < 2e-3
    with pytest.raises(AssertionError, match="off by"):
        check()


Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
NORMS: dict[str, tuple[Norm, Norm]] = {
    "batch": (
        lambda x, gain, shift: F.batch_norm(x, None, None, gain, shift, training=True),
        lambda x, gain, shift: normalize_by(x, batch_statistics(x), gain, shift),
    ),
    "instance": (
        lambda x, gain, shift: F.instance_norm(x, None, None, gain, shift),
        lambda x, gain, shift: normalize_over_groups(x, gain, shift, channels_per_group=1),
    ),
    "layer": (
        lambda x, gain, shift: F.layer_norm(x, x.shape[1:], per_pixel(gain, x), per_pixel(shift, x)),
        lambda x, gain, shift: normalize_over_groups(x, gain, shift, channels_per_group=x.shape[1]),
    ),
    "group": (
        lambda x, gain, shift: F.group_norm(x, 2, gain, shift),
        lambda x, gain, shift: normalize_over_groups(x, gain, shift, channels_per_group=2),
    ),
}
"""torch's own norms, and the same functions from plain operations."""


def per_pixel(values: Tensor, features: Tensor) -> Tensor:
    return values[:, None, None].expand(features.shape[1:])


@dataclass(frozen=True)
class Normalized:
    """Two convolutions of stride 2 with four filters, each normalized, and a linear classifier."""

    norm: Norm

    def initialize(self, input_shape: tuple[int, int, int], ways: int, generator: torch.Generator) -> Parameters:
        blocks = Conv4(filters=4).initialize((input_shape[0], 16, 16), ways, generator)
        pixels = -(-input_shape[1] // 4) * -(-input_shape[2] // 4)
        kept = {name: value for name, value in blocks.items() if name.startswith(("block1", "block2"))}
        return kept | MLP(hidden=()).initialize((4, pixels, 1), ways, generator)

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        features = images
        for block in ("block1", "block2"):
            weight, bias, gain, shift = (
                parameters[f"{block}.{name}"] for name in ("weight", "bias", "gain", "shift")
            )
            features = self.norm(F.conv2d(features, weight, bias, stride=2, padding=1), gain, shift).tanh()
        return F.linear(features.flatten(1), parameters["head.weight"], parameters["head.bias"])


@pytest.mark.parametrize("norm", NORMS)
def test_of_torchs_own_norms_the_test_says_what_plain_operations_say(norm: str) -> None:
    """Where the installed torch is right, its derivatives are held; where it is wrong, they are not.

    `pytest -rP` prints how wrong; the head of this file says how wrong 2.15.0 is.
    """
    native, plain = (Normalized(function) for function in NORMS[norm])
    rule, size = RULES["maml-2"], 8
    fresh = plain.initialize((1, size, size), WAYS, keyed_generator("normalized"))
    parameters = {
        name: value.double() + 0.1 * normal(value.shape, "native norms", name) for name, value in fresh.items()
    }
    seen, batch = episode(size, LAST), cohort(size)

    def gradient(model: Model) -> PerEpisode:
        return lambda episode: rule.meta_gradient(model, parameters, episode)[0]

    def meta_loss(moved: Parameters) -> Tensor:
        return loss_at(native, seen.query_inputs, seen.query_labels)(rule.adapt(native, moved, seen))

    distance: dict[Model, Callable[[Episode], Tensor]] = {
        model: matching(model, rule, parameters, gradient(plain)(episode(size, 0)), "cosine")
        for model in (native, plain)
    }

    def derivative(model: Model) -> PerEpisode:
        return derivative_of(distance[model], ("support_inputs",))

    def match(parts: Parameters) -> Tensor:
        return distance[native](seen._replace(**parts))

    right = gradient(plain)(seen), derivative(plain)(seen)
    measured = slopes(meta_loss, parameters, right[0], 2), slopes(match, seen._asdict(), right[1], 2)
    for order, of in enumerate((gradient, derivative)):
        hold(right[order], measured[order], "plain operations")
        for way, compute in WAYS_TO_COMPUTE.items():
            found = row(compute(of(native), batch))
            off = apart(found, right[order])
            print(f"torch {torch.__version__}, {norm} norm, derivative {order + 2}, {way}: off by {off:.1e}")
            if off < 1e-9:
                hold(found, measured[order])
            else:
                with pytest.raises(AssertionError, match="off by"):
                    hold(found, measured[order])


PIECES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky-relu": F.leaky_relu,
    "elu": F.elu,
    "module": nn.ReLU(),
    "max-pool": lambda value: F.max_pool2d(
        torch.stack([value, 0 * value, -value, -1 - value]).reshape(1, 1, 2, 2), 2
    ),
}


@pytest.mark.parametrize("piece", PIECES)
def test_differences_do_not_step_over_a_kink(piece: str) -> None:
    def bent(value: Tensor) -> Tensor:
        return (PIECES[piece](value).sum() + 1) ** 2

    near, nearer = torch.tensor([3e-6, 3e-9], dtype=torch.float64)

    def moved(function: Callable[[Tensor], Tensor], at: Tensor) -> Callable[[float], Tensor]:
        return lambda length: function(at + length)

    for function in (bent, grad(bent)):
        assert slope(moved(function, near)) == pytest.approx(float(grad(function)(near)), abs=1e-7)
        with pytest.raises(AssertionError, match="every step crosses a kink"):
            slope(moved(function, nearer))


@models
def test_every_kink_of_a_model_is_noted(model: str) -> None:
    images = episode(side(model), LAST).query_inputs
    layers = 4 if model.startswith("conv4") else 3 if model.startswith("lenet") else 2
    expected = layers * (model.startswith("conv4") or model.endswith("lu")) + 4 * model.endswith("max")
    assert len(kinks_of(lambda: MODELS[model](start(model), images)).sides) == expected
