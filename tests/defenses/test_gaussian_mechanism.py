"""The Gaussian mechanism: the bound on what goes in, the noise on what comes out, and the promise made of both."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import kstest

from metaleak.defenses import Accounted, Costed, Defense, GaussianMechanism, RandomSource, gaussian_epsilon
from metaleak.defenses.gaussian_mechanism import clipped


def source(seed=0):
    return RandomSource.of(seed)


def flat(tensors):
    return torch.cat([value.flatten().to(torch.float64) for value in tensors.values()])


def test_it_is_a_defense_with_a_guarantee_and_dense():
    mechanism = GaussianMechanism(clip=1, noise_multiplier=1)
    assert isinstance(mechanism, Defense)
    assert isinstance(mechanism, Accounted)
    assert not isinstance(mechanism, Costed)


def test_all_tensors_are_clipped_as_one_vector():
    tensors = {"a": torch.tensor([[3.0]]), "b": torch.tensor([0.0, 4.0])}
    assert flat(clipped(tensors, 1.0)).tolist() == pytest.approx([0.6, 0.0, 0.8], abs=1e-15)
    assert flat(clipped(tensors, 5.0)).tolist() == [3.0, 0.0, 4.0]
    assert flat(clipped(tensors, 100.0)).tolist() == [3.0, 0.0, 4.0]


@pytest.mark.parametrize(
    ("entries", "dtype", "expected"),
    [
        ([0.0, 0.0], torch.float32, [0.0, 0.0]),
        ([3e38, 3e38], torch.float32, [0.5**0.5, 0.5**0.5]),  # its square is beyond float32
        ([1e-45, 0.0], torch.float32, [2.0**-149, 0.0]),
        ([math.inf, 1.0], torch.float32, [0.0, 0.0]),
        ([-math.inf, math.inf], torch.float32, [0.0, 0.0]),
        ([math.nan, 1.0], torch.float32, [0.0, 0.0]),
        ([1e300, 1e300], torch.float64, [0.0, 0.0]),  # its norm is no float64
        ([7e4, 0.0], torch.float16, [0.0, 0.0]),  # infinite in float16
    ],
)
def test_the_table_of_norms(entries, dtype, expected):
    tensors = {"other": torch.zeros(3, dtype=dtype), "w": torch.tensor(entries, dtype=dtype)}
    result = clipped(tensors, 1.0)
    assert result["w"].tolist() == pytest.approx(expected, rel=1e-12)
    assert not result["other"].any()


@given(
    one=st.lists(st.floats(width=32), min_size=1, max_size=4),
    other=st.lists(st.floats(width=32), min_size=4, max_size=4),
    clip=st.floats(1e-3, 1e3),
)
def test_no_two_inputs_are_farther_apart_than_the_sensitivity(one, other, clip):
    """Whatever a learner computes, infinities and no numbers included."""
    padded = [*one, *[0.0] * (4 - len(one))]
    first, second = (flat(clipped({"w": torch.tensor(entries)}, clip)) for entries in (padded, other))
    assert torch.linalg.norm(first) <= clip * (1 + 1e-12)
    distance = torch.linalg.norm(first - second).item()
    assert distance <= GaussianMechanism(clip=clip, noise_multiplier=1).sensitivity * (1 + 1e-12)


def test_the_noise_is_gaussian_of_the_multiplier_times_the_sensitivity():
    mechanism = GaussianMechanism(clip=0.25, noise_multiplier=3)
    sent = mechanism({"a": torch.zeros(100, 100), "b": torch.zeros(10_000)}, source())
    assert mechanism.standard_deviation == pytest.approx(3 * 2 * 0.25)
    for value in sent.values():
        assert kstest(value.flatten().numpy(), "norm", args=(0, 1.5)).pvalue > 0.01
    assert abs(np.corrcoef(sent["a"].flatten(), sent["b"])[0, 1]) < 0.05


def test_without_noise_it_only_clips():
    sent = GaussianMechanism(clip=1, noise_multiplier=0)({"w": torch.tensor([3.0, 4.0])}, source())
    assert sent["w"].tolist() == pytest.approx([0.6, 0.8])
    assert GaussianMechanism(clip=1, noise_multiplier=0).epsilon_after(1) == math.inf


def test_the_best_test_between_two_learners_finds_what_the_guarantee_allows():
    """Two vectors as far apart as they can be, told apart by the likelihood ratio: delta is reached, not passed."""
    epsilon, delta, draws = 1.0, 0.05, 20_000
    mechanism = GaussianMechanism(clip=2, epsilon=epsilon, delta=delta, releases=1)
    random = source()
    one, other = (
        torch.stack([mechanism({"w": torch.tensor([sign * 50.0])}, random)["w"] for _ in range(draws)]).flatten()
        for sign in (1, -1)
    )
    # The likelihood ratio of N(2, s^2) to N(-2, s^2) at x is exp(4 x / s^2).
    threshold = epsilon * mechanism.standard_deviation**2 / 4
    found = (one > threshold).double().mean() - math.exp(epsilon) * (other > threshold).double().mean()
    assert found.item() == pytest.approx(delta, abs=0.02)


def test_an_epsilon_is_for_the_whole_run():
    asked = GaussianMechanism(clip=1, epsilon=8)
    for releases in (1, 30, 150):
        ready = asked.for_releases(releases)
        assert ready.releases == releases
        assert ready.epsilon_after(releases) == pytest.approx(8)
        assert gaussian_epsilon(ready.multiplier, releases, 1e-5) <= 8
    assert asked.for_releases(30).standard_deviation > 5 * asked.for_releases(1).standard_deviation
    with pytest.raises(ValueError, match=r"^releases: must be given with epsilon"):
        asked({"w": torch.ones(2)}, source())


def test_a_budget_for_fewer_rounds_is_refused_and_one_for_more_is_kept():
    asked = GaussianMechanism(clip=1, epsilon=8, releases=30)
    assert asked.for_releases(20) == asked.for_releases(30) == asked
    assert asked.epsilon_after(20) < 8
    with pytest.raises(ValueError, match=r"^releases: a learner takes part in 31 rounds, epsilon covers 30$"):
        asked.for_releases(31)


def test_a_noise_multiplier_serves_any_number_of_rounds():
    mechanism = GaussianMechanism(clip=1, noise_multiplier=2)
    assert mechanism.for_releases(1000) == mechanism
    assert mechanism.epsilon_after(1000) > 10 * mechanism.epsilon_after(10) > 0


@pytest.mark.parametrize("unit", ["learner", "image"])
def test_the_unit_is_a_statement_and_not_a_number(unit):
    mechanism = GaussianMechanism(clip=1, noise_multiplier=2, unit=unit)
    assert mechanism.epsilon_after(5) == GaussianMechanism(clip=1, noise_multiplier=2).epsilon_after(5)


@pytest.mark.parametrize("settings", [{"epsilon": 8}, {"epsilon": 8, "releases": 3}, {"noise_multiplier": 1.5}])
def test_plain_settings_make_the_same_mechanism_again(settings):
    mechanism = GaussianMechanism(clip=1, **settings)
    assert GaussianMechanism(**mechanism.model_dump(mode="json")) == mechanism


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "epsilon: give either epsilon, for the whole run, or noise_multiplier"),
        ({"epsilon": 1, "noise_multiplier": 1}, "epsilon: give either"),
        ({"noise_multiplier": 1, "releases": 3}, "releases: is for epsilon alone"),
        ({"epsilon": 1, "releases": 0}, "releases"),
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"noise_multiplier": -1}, "noise_multiplier"),
        ({"noise_multiplier": 1, "clip": 0}, "clip"),
        ({"noise_multiplier": 1, "clip": math.nan}, "clip"),
        ({"noise_multiplier": 1, "delta": 0}, "delta"),
        ({"noise_multiplier": 1, "place": "inner"}, "place"),
        ({"noise_multiplier": 1, "unit": "pixel"}, "unit"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong, says):
    with pytest.raises(ValidationError, match=says):
        GaussianMechanism(**{"clip": 1, **wrong})
