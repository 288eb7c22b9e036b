"""Accounting: the closed form, the composition, and a numerical integral as references."""

import math
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from metaleak.defenses import gaussian_epsilon, gaussian_noise_multiplier, redrawn_epsilon, secure_sum_epsilon


def analytic_delta(multiplier, epsilon):
    """Balle and Wang 2018, theorem 8, with sensitivity 1."""
    first, second = 1 / (2 * multiplier) - epsilon * multiplier, -1 / (2 * multiplier) - epsilon * multiplier
    # e^epsilon times a tail, both beyond float64 where epsilon is large: added as logarithms.
    return norm.cdf(first) - math.exp(epsilon + norm.logcdf(second))


@given(
    multiplier=st.floats(0.2, 50),
    releases=st.integers(1, 1000),
    delta=st.sampled_from([1e-9, 1e-5, 1e-2]),
)
def test_epsilon_is_that_of_the_analytic_gaussian_mechanism(multiplier, releases, delta):
    epsilon = gaussian_epsilon(multiplier, releases, delta)
    one = multiplier / math.sqrt(releases)
    if epsilon == 0:
        assert analytic_delta(one, 0) <= delta
    else:
        assert analytic_delta(one, epsilon) == pytest.approx(delta, rel=1e-4)


@pytest.mark.parametrize(
    ("multiplier", "releases", "delta"),
    [(1.0, 1, 1e-5), (5.0, 12, 1e-5), pytest.param(20.0, 150, 1e-6, marks=pytest.mark.slow)],
)
def test_a_numerical_accountant_that_replaces_one_agrees(multiplier, releases, delta):
    """The library's distributions, rounded up: composed release by release, in units of the clipping norm."""
    accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    for _ in range(releases):
        accountant.compose(GaussianDpEvent(2 * multiplier))
    bound = accountant.get_epsilon(delta)
    exact = gaussian_epsilon(multiplier, releases, delta)
    assert exact <= bound <= exact * 1.002


def test_known_values():
    assert gaussian_epsilon(1.0, 1, 1e-5) == pytest.approx(4.37718, abs=1e-4)
    assert gaussian_noise_multiplier(1.0, 1, 1e-5) == pytest.approx(3.73063, abs=1e-4)
    assert gaussian_epsilon(0.0, 1, 1e-5) == math.inf


@given(
    epsilon=st.floats(1e-3, 1e4),
    releases=st.integers(1, 10**6),
    delta=st.sampled_from([1e-9, 1e-5, 1e-2]),
)
def test_calibration_spends_the_budget_and_no_more(epsilon, releases, delta):
    spent = gaussian_epsilon(gaussian_noise_multiplier(epsilon, releases, delta), releases, delta)
    assert spent <= epsilon
    assert spent == pytest.approx(epsilon, rel=1e-6, abs=1e-6)


def replaced_delta(epsilon, std, probability):
    """The hockey-stick divergence of one sampled release, the learner's vector at +1 or at -1, by integration."""

    def gap(x):
        one, other = (
            (1 - probability) * norm.pdf(x, 0, std) + probability * norm.pdf(x, place, std) for place in (1, -1)
        )
        return max(0.0, one - math.exp(epsilon) * other)

    points = np.linspace(-3, 12 * std + 1, 60)
    return sum(quad(gap, low, high, limit=200)[0] for low, high in pairwise(points))


@pytest.mark.parametrize(("multiplier", "probability"), [(0.5, 0.1), (0.5, 0.5), (1.0, 0.3)])
def test_a_secret_sample_is_worth_what_the_integral_says(multiplier, probability):
    epsilon = secure_sum_epsilon(multiplier, probability, 1, 1e-4)
    assert replaced_delta(epsilon, 2 * multiplier, probability) <= 1e-4 * (1 + 1e-6)
    assert replaced_delta(0.99 * epsilon - 1e-3, 2 * multiplier, probability) > 1e-4


def test_a_sample_that_is_known_is_worth_nothing():
    assert secure_sum_epsilon(2.0, 1.0, 30, 1e-5) == gaussian_epsilon(2.0, 30, 1e-5)
    spent = [secure_sum_epsilon(2.0, probability, 30, 1e-5) for probability in (0.05, 0.3, 0.9, 1.0)]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1] / 10
    assert secure_sum_epsilon(0.0, 0.5, 30, 1e-5) == math.inf


@pytest.mark.parametrize(
    ("function", "arguments", "key"),
    [
        (gaussian_epsilon, (-1.0, 1, 1e-5), "noise_multiplier"),
        (gaussian_epsilon, (math.nan, 1, 1e-5), "noise_multiplier"),
        (gaussian_epsilon, (1.0, 0, 1e-5), "releases"),
        (gaussian_epsilon, (1.0, 1, 0.0), "delta"),
        (gaussian_epsilon, (1.0, 1, 1.0), "delta"),
        (gaussian_noise_multiplier, (0.0, 1, 1e-5), "epsilon"),
        (gaussian_noise_multiplier, (math.inf, 1, 1e-5), "epsilon"),
        (gaussian_noise_multiplier, (1.0, 0, 1e-5), "releases"),
        (secure_sum_epsilon, (1.0, 0.0, 1, 1e-5), "sampling_probability"),
        (secure_sum_epsilon, (1.0, 1.1, 1, 1e-5), "sampling_probability"),
        (secure_sum_epsilon, (1.0, 0.5, 0, 1e-5), "releases"),
    ],
)
def test_arguments_out_of_range_are_named(function, arguments, key):
    with pytest.raises(ValueError, match=rf"^{key}: must be .*, got"):
        function(*arguments)


def test_episodes_drawn_in_secret_cost_less_and_never_more_than_fixed_ones():
    found = [redrawn_epsilon(2.0, 20, held, 40, 1e-5) for held in (20, 40, 200, 2000)]
    assert found[0] == gaussian_epsilon(2.0, 40, 1e-5)
    assert all(more >= less for more, less in pairwise(found))
    assert found[-1] < found[0] / 4
    assert redrawn_epsilon(0.0, 1, 10, 1, 1e-5) == math.inf


def test_the_bound_for_redrawn_episodes_holds_for_one_round():
    """The mixture of "drawn" and "not drawn", integrated: its delta at that epsilon is no greater."""
    multiplier, drawn, held, delta = 0.8, 1, 10, 1e-5
    epsilon = redrawn_epsilon(multiplier, drawn, held, 1, delta)
    chance = drawn / held

    def density(shift):
        return lambda x: chance * norm.pdf(x, shift, multiplier) + (1 - chance) * norm.pdf(x, 0.0, multiplier)

    # One image replaced by its opposite: as far apart as the sensitivity, 1, allows.
    first, second = density(0.5), density(-0.5)
    excess = quad(lambda x: max(0.0, first(x) - math.exp(epsilon) * second(x)), -15, 15, limit=500)[0]
    assert excess <= delta
    assert epsilon < gaussian_epsilon(multiplier, 1, delta)


@pytest.mark.parametrize(("drawn", "held"), [(0, 10), (11, 10)])
def test_more_than_is_held_cannot_be_drawn(drawn, held):
    with pytest.raises(ValueError, match=rf"^drawn: must be in \[1, {held}\]"):
        redrawn_epsilon(1.0, drawn, held, 1, 1e-5)
