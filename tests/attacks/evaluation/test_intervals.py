"""Intervals equal those of Student's t and of Clopper and Pearson where these are exact."""

import numpy as np
import pytest
from scipy.stats import beta, t

from metaleak.attacks.evaluation.intervals import Estimate, expanded_interval, of_resampled, over_seeds
from metaleak.attacks.evaluation.membership import evaluate


def rate(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


@pytest.mark.parametrize("clusters", [10, 100])
def test_resampled_means_give_the_interval_of_students_t(clusters: int) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=clusters)
    means = values[random.integers(0, clusters, (200_000, clusters))].mean(axis=1)
    exact = t.interval(0.95, clusters - 1, values.mean(), values.std(ddof=1) / np.sqrt(clusters))
    found = expanded_interval(means, clusters)
    assert found[1] - found[0] == pytest.approx(exact[1] - exact[0], rel=0.05)
    assert found[1] - found[0] > np.diff(np.quantile(means, [0.025, 0.975]))


def test_a_clustered_rate_has_students_interval_within_0_and_1() -> None:
    random = np.random.default_rng(1)
    values = 0.5 + 0.02 * random.normal(size=8)
    means = values[random.integers(0, 8, (100_000, 8))].mean(axis=1)
    exact = t.interval(0.95, 7, values.mean(), values.std(ddof=1) / np.sqrt(8))
    found = of_resampled(values.mean(), means, clusters=8, units=100)
    assert (found.low, found.high) == pytest.approx(exact, abs=1e-3)
    near = of_resampled(0.998, np.array([1.0, 0.996] * 50), clusters=8, units=100)
    assert 0.5 < near.low < 0.996
    assert 0.998 < near.high < 1


def test_a_rate_of_exactly_1_has_the_clopper_pearson_interval() -> None:
    for value in (0.0, 1.0):
        found = of_resampled(value, np.full(50, value), clusters=10, units=30)
        exact = (beta.ppf(0.025, 30, 1), 1.0) if value else (0.0, beta.ppf(0.975, 1, 30))
        assert (found.low, found.high) == pytest.approx(exact)
        assert over_seeds([rate(value)] * 5, units=30) == found


def test_seeds_give_the_interval_of_students_t_on_the_odds() -> None:
    values = np.array([0.70, 0.72, 0.69, 0.75, 0.71])
    found = over_seeds([rate(value) for value in values], units=1000)
    exact = t.interval(0.95, 4, values.mean(), values.std(ddof=1) / np.sqrt(5))
    assert (found.low, found.high) == pytest.approx(exact, abs=0.002)
    near = over_seeds([rate(value) for value in (1.0, 1.0, 0.9999)], units=1000)
    assert 0 < near.low < near.value < near.high < 1
    one = Estimate(value=0.6, low=0.5, high=0.7)
    assert over_seeds([one], units=1000) == one


def test_one_more_error_changes_the_interval_only_a_little() -> None:
    lows = []
    for errors in range(4):
        scores = np.concatenate([np.linspace(2, 3, 400 - errors), np.full(errors, 0.5), np.linspace(0, 1, 2000)])
        member = np.arange(2400) < 400
        found = evaluate(scores, member, groups=np.arange(2400) % 20).auc
        assert found.low < found.value <= found.high
        lows.append(found.low)
    assert lows[0] > 0.99
    assert np.abs(np.diff(lows)).max() < 0.01, lows


@pytest.mark.parametrize(("members", "others"), [(1, 500), (500, 1), (100, 5000)])
def test_few_targets_give_an_interval_of_positive_width(members: int, others: int) -> None:
    scores = np.concatenate([np.linspace(0.5, 1, members), np.linspace(0, 0.49, others - 1), [0.8]])
    found = evaluate(scores, np.arange(members + others) < members)
    for rate in (found.auc, found.balanced_accuracy):
        assert rate.low < rate.value <= rate.high
