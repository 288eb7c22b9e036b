"""Gradient alignment: contributions of images, the metric, shadow learners, and that members are found."""

import math
from dataclasses import replace

import pytest
import torch
from membership_questions import held_inputs, observed, questions
from torch import Tensor

from metaleak.attacks.alignment import example_gradients
from metaleak.attacks.alignment.alignment import Alignment
from metaleak.attacks.alignment.example_gradients import (
    flattened,
    query_contributions,
    support_contributions,
)
from metaleak.attacks.alignment.gradient_metric import fit
from metaleak.attacks.attack import Targets
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.observation import Observation
from metaleak.attacks.shadows.discriminant import fit_discriminant
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.attacks.shadows.shadow_learners import in_means, shadow_learners
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.episode import Episode
from metaleak.clients.federation import Federation
from metaleak.clients.models import Conv4
from metaleak.clients.partition import Partition, TaskShape
from metaleak.clients.rules import MAML, FedAvg, FedMeNF, FedSGD, Reptile, first_order_maml
from metaleak.defenses import Noise, Quantization, RandomSource

LEARNERS = list(range(12))
SMALL = {"stand_ins": 2, "samples": 300, "shadows": 12}


def federation(model=None, rule=None, defenses=()):
    return Federation(
        seed=3,
        data=EmbeddedMNIST(),
        task=TaskShape(ways=5, shots=2, queries=3),
        partition=Partition(learners=len(LEARNERS), held_out=0.4),
        model=model or Conv4(filters=8, normalization="none"),
        rule=rule or MAML(),
        defenses=defenses,
    )


def asked(world: Federation, asks="query") -> tuple[Targets, Tensor]:
    return questions(world, LEARNERS, 1, asks, members=120, non_members=180)


@pytest.fixture(scope="module")
def world():
    return federation()


@pytest.fixture(scope="module")
def observation(world):
    return observed(world, LEARNERS)


def auc(attack: Alignment, world: Federation, observation: Observation) -> float:
    targets, member = asked(world, attack.asks)
    scores = attack(observation, targets, seed=0).scores
    return evaluate(scores.numpy(), member.numpy(), resamples=1).auc.value


@pytest.mark.parametrize("rule", [first_order_maml(), FedMeNF(order=1)], ids=str)
@pytest.mark.parametrize("normalization", ["none", "group"])
def test_the_mean_contribution_is_the_meta_gradient_of_a_first_order_rule(normalization, rule):
    world = federation(Conv4(filters=8, normalization=normalization), rule)
    learner = world.learner(0)
    episode, parameters = learner.episode(1), world.initial_parameters()
    support = episode.support_inputs.reshape(1, 5, 2, 1, 28, 28)
    parts = query_contributions(
        world.model, world.rule, parameters, support, episode.query_inputs, episode.query_labels
    )
    gradient, _ = learner.meta_gradient(parameters, 1)
    whole = flattened({name: value[None] for name, value in gradient.items()})[0]
    torch.testing.assert_close(parts.mean(dim=0), whole, rtol=1e-4, atol=1e-6)


def test_a_batch_normalized_model_is_decoupled_at_its_reference_batch():
    model = Conv4(filters=8, normalization="batch")
    parameters = model.initialize((1, 28, 28), 5, torch.Generator().manual_seed(0))
    images = torch.rand((6, 1, 28, 28), generator=torch.Generator().manual_seed(1))
    single = model.decoupled(parameters, images)
    torch.testing.assert_close(single(parameters, images), model(parameters, images))
    torch.testing.assert_close(single(parameters, images[:1]), model(parameters, images)[:1])
    assert not torch.allclose(model(parameters, images[:2])[:1], model(parameters, images)[:1])


def numbered() -> OwnExamples:
    """Return forty images, each a number of its own, in four classes."""
    return OwnExamples(torch.arange(40.0).reshape(40, 1, 1, 1), torch.arange(40) % 4)


def test_own_images_are_of_the_requested_class_and_distinct():
    drawn = numbered().draw(torch.tensor([2, 0]), 7, torch.Generator().manual_seed(0)).flatten(1)
    assert torch.equal(drawn.long() % 4, torch.tensor([[2], [0]]).expand(2, 7))
    assert all(len(set(row.tolist())) == 7 for row in drawn)


def test_a_class_without_images_is_replaced_by_one_that_the_learner_does_not_have():
    for seed in range(20):
        classes = numbered().present(torch.tensor([[1, 99, 98], [97, 96, 95]]), torch.Generator().manual_seed(seed))
        assert classes[0, 0] == 1
        assert all(len(set(row)) == 3 for row in classes.tolist())
        assert set(classes.flatten().tolist()) <= {0, 1, 2, 3}


def test_the_parts_of_own_images_are_disjoint_and_have_every_class():
    few, rest = numbered().parted()
    assert not set(few.images.flatten().tolist()) & set(rest.images.flatten().tolist())
    assert set(few.labels.tolist()) == set(rest.labels.tolist()) == {0, 1, 2, 3}
    assert rest.least() >= 5


def test_shadows_without_a_free_image_are_refused(observation):
    own = OwnExamples(torch.rand((50, 1, 28, 28)), torch.arange(50) % 10)
    with pytest.raises(ValueError, match=r"needs 6 .* per class, got 5; raise partition.held_out"):
        shadow_learners(observation, own, 4, RandomSource.of(0))


def correlated(count: int) -> torch.Tensor:
    """Return matrices (4, 6) with a Kronecker covariance and one strong common direction, and vectors of 3."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn((4, 4), generator=generator), torch.randn((6, 6), generator=generator)
    matrices = (left @ torch.randn((count, 4, 6), generator=generator) @ right).flatten(1)
    common = torch.randn((1, 24), generator=generator)
    matrices += 30 * torch.randn((count, 1), generator=generator) * common
    return torch.cat([matrices, torch.randn((count, 3), generator=generator) * torch.tensor([1.0, 3.0, 9.0])], dim=1)


def test_white_entries_have_variance_one():
    samples = correlated(500)
    metric = fit(samples, ((4, 6), (3,)), torch.zeros(2), components=0.0)
    white = metric.white(samples - samples.mean(dim=0))
    torch.testing.assert_close(white.square().mean(dim=0), torch.ones(27), rtol=5e-3, atol=0)


def test_the_metric_is_one_inner_product():
    samples = correlated(500)
    metric = fit(samples, ((4, 6), (3,)), torch.zeros(2), components=0.02)
    left, right = metric.white(samples[:5]), metric.white(samples[5:10])
    products = metric.own(left) * right
    torch.testing.assert_close(metric.by_tensor(products).sum(dim=1), (left * metric.own(right)).sum(dim=1))
    torch.testing.assert_close((metric.own(left) * left).sum(dim=1).sqrt(), metric.norm(left))


def test_a_common_direction_counts_less_than_others():
    samples = correlated(500)
    metric = fit(samples, ((4, 6), (3,)), torch.zeros(2), components=0.002)
    strongest = metric.common[:, 0][None]
    assert metric.norm(strongest) < 0.6 < 0.95 < metric.norm(torch.eye(27)).max()


def test_noise_of_a_tensor_makes_it_count_less():
    samples = correlated(500)
    quiet = fit(samples, ((4, 6), (3,)), torch.zeros(2), 0.0)
    noisy = fit(samples, ((4, 6), (3,)), torch.tensor([0.0, 1e6]), 0.0)
    unit = torch.eye(27)[24:]
    assert (noisy.white(unit).norm(dim=1) < 0.2 * quiet.white(unit).norm(dim=1)).all()
    torch.testing.assert_close(noisy.white(torch.eye(27)[:3]), quiet.white(torch.eye(27)[:3]))


def test_a_discriminant_returns_the_log_ratio_of_two_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    others = torch.randn((200_000, 2), generator=generator, dtype=torch.float64)
    members = others.flip(0) + torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = fit_discriminant(members, others).log_ratio(torch.tensor([[0.5, 0.25], [1.0, 0.5], [0.0, 0.0]]))
    # log N(x; m, 1) - log N(x; 0, 1) = m x - m^2 / 2.
    torch.testing.assert_close(found, torch.tensor([0.0, 0.625, -0.625], dtype=torch.float64), rtol=0.02, atol=0.01)


def test_shadows_send_what_learners_with_their_images_would(observation, world):
    noise = Noise(place="shared", scale=0.5)
    own = OwnExamples.of(observation)
    told = replace(observation, defenses=(noise,))
    shadows = shadow_learners(told, own, 5, RandomSource.of(0))
    assert shadows.classes.tolist() == observation.classes[:5].tolist()
    labels = torch.arange(5)
    episode = Episode(
        shadows.support[4].flatten(0, 1),
        labels.repeat_interleave(2),
        shadows.query[4].flatten(0, 1),
        labels.repeat_interleave(3),
    )
    gradient, _ = world.rule.meta_gradient(world.model, observation.parameters, episode)
    for name, value in gradient.items():
        torch.testing.assert_close(shadows.undefended[name][4], value, rtol=1e-4, atol=1e-6)
    added = flattened(shadows.gradients) - flattened(shadows.undefended)
    level = added.square().mean(dim=1).sqrt() / flattened(shadows.undefended).square().mean(dim=1).sqrt()
    torch.testing.assert_close(level, torch.full((5,), 0.5), rtol=0.05, atol=0)


def test_query_members_are_found_in_a_convolutional_network(observation, world):
    assert auc(Alignment(**SMALL), world, observation) > 0.9


FEDERATED = [Reptile(inner_steps=3), FedSGD(), FedAvg(epochs=2, batch=10)]


@pytest.mark.parametrize("rule", FEDERATED, ids=str)
@pytest.mark.parametrize("asks", ["query", "support"])
def test_members_of_either_set_are_found_where_both_are_one(rule, asks):
    world = federation(rule=rule)
    found = auc(Alignment(asks=asks, second_order=asks == "query", **SMALL), world, observed(world, LEARNERS))
    assert found > 0.7


@pytest.mark.parametrize("rule", FEDERATED, ids=str)
def test_what_adding_an_image_changes_is_its_own_gradient_where_both_sets_are_one(rule):
    """With short steps adapting changes little, except at biases of zero, where ReLU is not differentiable."""
    name = {FedAvg: "rate", Reptile: "inner_rate"}.get(type(rule))
    short = rule.model_copy(update={name: 1e-5} if name else {})
    world = federation(rule=short)
    episode, parameters = world.learner(0).episode(1), world.initial_parameters()
    support, query, images = (
        part.double() for part in (episode.support_inputs, episode.query_inputs, world.learner(1).episode(1)[2])
    )
    given = world.model, short, {name: value.double() for name, value in parameters.items()}
    support, query = support.reshape(1, 5, 2, 1, 28, 28), query.reshape(1, 5, 3, 1, 28, 28)
    asked = images[:4], episode.query_labels[:4]
    added = support_contributions(*given, support, query, *asked)
    alone = query_contributions(*given, support, *asked)
    likeness = torch.nn.functional.cosine_similarity(added, alone)
    assert likeness.min() > 0.9


@pytest.mark.slow
def test_support_members_are_found_if_the_query_set_is_known(observation, world):
    told = replace(observation, known_query=held_inputs(world, LEARNERS, 1, "query"))
    assert auc(Alignment(asks="support", knows="other", **SMALL), world, told) > 0.65


def test_query_members_are_found_through_batch_normalization():
    world = federation(Conv4(filters=8, normalization="batch"))
    assert auc(Alignment(**SMALL), world, observed(world, LEARNERS)) > 0.7


def test_knowing_the_defense_finds_more_members():
    world = federation(defenses=(Noise(place="shared", scale=1.0),))
    seen = observed(world, LEARNERS)
    naive = replace(seen, defenses=None)
    told = auc(Alignment(**SMALL), world, seen)
    assert told > 0.55
    assert told > auc(Alignment(knows_defenses=False, **SMALL), world, naive)


def test_in_a_mean_the_scores_are_those_of_learners_in_a_mean(world, observation):
    """Scores are log-likelihood ratios, so 0 separates members from others about as well as any threshold."""
    members = 4
    some = {name: value[:members].mean(dim=0, keepdim=True) for name, value in observation.gradients.items()}
    mean = {name: value.expand(members, *value.shape[1:]) for name, value in some.items()}
    together = replace(observation, gradients=mean, classes=observation.classes[:members], mean_of=members)
    targets, member = asked(world)
    asked_of = targets.rows < members
    targets, member = targets.at(asked_of), member[asked_of]
    scores = Alignment(**SMALL)(together, targets, seed=0).scores
    found = evaluate(scores.numpy(), member.numpy(), resamples=1)
    assert found.auc.value > 0.65
    at_zero = ((scores[member] > 0).double().mean() + (scores[~member] <= 0).double().mean()) / 2
    assert at_zero > found.balanced_accuracy.value - 0.1


def test_a_shadow_is_one_more_learner_in_the_observed_mean(observation):
    own = OwnExamples.of(observation)
    shadows = shadow_learners(observation, own, 3, RandomSource.of(0))
    together = in_means(replace(observation, mean_of=12), shadows)
    for name, value in together.gradients.items():
        expected = (12 * observation.gradients[name][0] + shadows.gradients[name]) / 13
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-8)
    assert in_means(observation, shadows) is shadows


def test_a_target_is_scored_independently_of_others(observation, world):
    targets, _ = asked(world)
    attack = Alignment(**SMALL)
    together = attack(observation, targets, seed=0).scores
    some = torch.arange(0, len(targets.rows), 7).flip(0)
    alone = attack(observation, Targets(targets.examples[some], targets.rows[some], targets.positions[some]), seed=0)
    torch.testing.assert_close(alone.scores, together[some], rtol=1e-3, atol=1e-3)


def test_scaling_the_gradient_keeps_the_order_of_scores(observation, world):
    targets, _ = asked(world)
    attack = Alignment(**SMALL)
    larger = replace(observation, gradients={name: 8.0 * value for name, value in observation.gradients.items()})
    order = [attack(seen, targets, seed=0).scores.argsort().tolist() for seen in (observation, larger)]
    assert order[0] == order[1]


@pytest.mark.parametrize("missing", ["classes", "own_examples"])
def test_missing_knowledge_is_named(observation, world, missing):
    targets, _ = asked(world)
    with pytest.raises(ValueError, match=r"class|own images"):
        Alignment(**SMALL)(replace(observation, **{missing: None}), targets, seed=0)


def test_the_threat_model_is_declared():
    assert Alignment().requires == {"labels", "classes", "own examples", "defenses"}
    assert Alignment(knows_defenses=False).requires == {"labels", "classes", "own examples"}


def test_scores_are_finite_when_nothing_can_be_learned(observation, world):
    targets, _ = asked(world)
    zeros = replace(observation, gradients={name: torch.zeros_like(v) for name, v in observation.gradients.items()})
    scores = Alignment(**SMALL)(zeros, targets, seed=0).scores
    assert all(math.isfinite(score) for score in scores.tolist())


@pytest.mark.parametrize(
    "defense",
    [Noise(place="shared"), Noise(place="inner", law="laplace"), Quantization(bits=4, stochastic=True)],
    ids=str,
)
@pytest.mark.parametrize("asks", ["query", "support"])
def test_it_creates_tensors_on_the_device_of_its_inputs(asks, defense):
    """The default device is set to one without data: a tensor created there would fail or show in the scores."""
    world = federation(defenses=(defense,))
    targets, _ = asked(world, asks)
    given = observed(world, LEARNERS), targets.at(torch.arange(6)), 0
    attack = Alignment(asks=asks, stand_ins=1, references=1, samples=10, shadows=4)
    plain = attack(*given).scores
    with torch.device("meta"):
        elsewhere = attack(*given).scores
    assert attack.on_any_device
    assert torch.equal(elsewhere, plain)


def test_stand_ins_computed_together_equal_one_after_the_other(observation, monkeypatch):
    own = OwnExamples.of(observation)
    shadows = shadow_learners(observation, own, 3, RandomSource.of(0))
    given = Conv4(filters=8, normalization="none"), MAML(), observation.parameters
    asked_about = shadows.support, shadows.query[0].flatten(0, 1), torch.arange(5).repeat_interleave(3)
    alone = query_contributions(*given, *asked_about)
    monkeypatch.setattr(example_gradients, "number_at_once", lambda on_cpu, device: 16 * on_cpu)
    torch.testing.assert_close(query_contributions(*given, *asked_about), alone, rtol=1e-4, atol=1e-6)


def test_a_known_query_set_requires_the_second_order():
    with pytest.raises(ValueError, match="second_order"):
        Alignment(asks="support", knows="other", second_order=False)
