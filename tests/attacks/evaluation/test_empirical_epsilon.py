"""Lower bounds on epsilon hold with the stated confidence, are tight, and depend only on the order of scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

import metaleak.attacks.evaluation.empirical_epsilon as module
from metaleak.attacks.evaluation.empirical_epsilon import (
    epsilon_lower_bound,
    gaussian_epsilon_lower_bound,
    one_run_lower_bound,
)
from metaleak.defenses import gaussian_epsilon

BOUNDS = [epsilon_lower_bound, gaussian_epsilon_lower_bound, one_run_lower_bound]
DELTA = 1e-5


def gaussian_scores(apart, members, non_members, seed):
    random = np.random.default_rng(seed)
    member = random.permutation(np.arange(members + non_members) < members)
    return random.normal(size=len(member)) + apart * member, member


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("apart", [0.2, 1.0, 2.0])
def test_a_bound_exceeds_the_truth_in_at_most_one_trial_of_twenty(bound, apart):
    true = gaussian_epsilon(1 / apart, 1, DELTA)
    above = sum(bound(*gaussian_scores(apart, 200, 300, seed), delta=DELTA) > true for seed in range(200))
    assert binom.sf(above - 1, 200, 0.05) > 0.01


@pytest.mark.parametrize("bound", [epsilon_lower_bound, one_run_lower_bound])
def test_a_bound_fails_at_most_as_often_as_stated_but_not_never(bound):
    """Every test of randomized response attains its epsilon, so that a bound that is too high is noticed."""
    true, trials = 1.0, 200
    random = np.random.default_rng(3)
    right = np.exp(true) / (1 + np.exp(true))
    above = 0
    for _ in range(trials):
        member = random.random(1000) < 0.5
        answer = np.where(random.random(1000) < right, member, ~member)
        above += bound(answer, member, delta=0, confidence=0.5) > true
    assert 0.01 * trials < above < 0.5 * trials


@pytest.mark.parametrize(
    ("bound", "least"),
    [(epsilon_lower_bound, 0.45), (gaussian_epsilon_lower_bound, 0.85), (one_run_lower_bound, 0.35)],
)
def test_many_samples_make_a_bound_tight(bound, least):
    true = gaussian_epsilon(1 / 1.5, 1, DELTA)
    found = bound(*gaussian_scores(1.5, 200_000, 200_000, 1), delta=DELTA)
    assert least * true < found < true


def test_the_truth_is_reached_at_a_large_delta():
    # At delta 0.1 the best test lies in the middle of the ROC curve, where rates are easily estimated.
    true = gaussian_epsilon(1 / 1.5, 1, 0.1)
    assert 0.95 * true < epsilon_lower_bound(*gaussian_scores(1.5, 500_000, 500_000, 1), delta=0.1) < true


def test_perfect_separation_has_a_closed_form():
    count, member = 1000, np.arange(2000) < 1000
    # Ranks 250, 62, 15, 3 and 0, each with two rates on either side: 20 bounds share the error probability.
    error = 0.05 / 20
    rate = error ** (1 / count)
    expected = np.log((rate - DELTA) / (1 - rate))
    assert epsilon_lower_bound(member.astype(float), member, delta=DELTA) == pytest.approx(expected)
    # 2 000, 500, 124 and 30 guesses (6 would be too few) about 2 000 coins, all right.
    quarter = 0.05 / 4
    odds = quarter ** (1 / 2000)
    assert one_run_lower_bound(member.astype(float), member, delta=0) == pytest.approx(np.log(odds / (1 - odds)))


def test_the_bound_is_0_for_equal_and_for_reversed_scores():
    member = np.arange(400) % 2 == 0
    for scores in (np.zeros(400), -member.astype(float)):
        assert [bound(scores, member) for bound in BOUNDS] == [0, 0, 0]


def test_ties_are_not_broken_in_favor_of_the_attack():
    random = np.random.default_rng(0)
    member = random.random(4000) < 0.5
    told = np.where(random.random(4000) < 0.7, member, ~member).astype(float)
    assert 0.5 < epsilon_lower_bound(told, member, delta=0) < np.log(7 / 3)


scored = st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=2, max_size=200).map(
    lambda pairs: (np.array([float(score) for score, _ in pairs]), np.array([kind for _, kind in pairs]))
)


@settings(max_examples=60, deadline=None)
@given(scored, st.sampled_from(BOUNDS), st.sampled_from([0.0, 1e-5, 0.05]))
def test_only_the_order_of_scores_counts(pair, bound, delta):
    scores, member = pair
    found = bound(scores, member, delta=delta)
    assert 0 <= found < np.inf
    assert bound(np.exp(scores / 3), member, delta=delta) == found
    assert bound(scores * 1e30, member, delta=delta) == found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 300), st.integers(1, 300), st.sampled_from(BOUNDS[:2]))
def test_swapping_members_and_non_members_keeps_the_bound(seed, members, non_members, bound):
    scores, member = gaussian_scores(3.0, members, non_members, seed)
    assert bound(-scores, ~member) == pytest.approx(bound(scores, member), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(100, 300), st.sampled_from(BOUNDS))
def test_more_confidence_and_more_delta_prove_less(seed, each, bound):
    scores, member = gaussian_scores(3.0, each, each, seed)
    found = bound(scores, member, delta=0.0005, confidence=0.9)
    assert found > 0
    assert bound(scores, member, delta=0.0005, confidence=0.99) < found
    assert bound(scores, member, delta=0.002, confidence=0.9) < found


def test_copies_of_a_target_do_not_raise_the_bound():
    """One learner's targets share its noise: 50 learners with 40 equal targets of each kind are 50 observations."""
    scores, member = gaussian_scores(3.0, 25, 25, 5)
    learner = np.arange(50)
    copied = [np.repeat(values, 40) for values in (scores, member, learner)]
    alone = epsilon_lower_bound(scores, member)
    assert epsilon_lower_bound(copied[0], copied[1], groups=copied[2]) == alone > 0.5
    assert epsilon_lower_bound(copied[0], copied[1]) > 2 * alone


def test_a_mixed_group_counts_on_one_side_only():
    member = np.array([True, False, True, False, True, False, False])
    groups = np.array([1, 1, 2, 2, 3, 4, 4])
    counted = module._one_of_each(member, groups)
    # Group 1 counts as a member, 2 as a non-member, 3 has members only, 4 non-members only.
    assert counted.tolist() == [0, 3, 4, 5]


def test_dependent_targets_do_not_make_the_bound_wrong():
    """Noise shifts all scores of a learner together: if they counted as independent, the bound would be too high."""
    true = gaussian_epsilon(1.0, 1, DELTA)

    def trial(seed, grouped):
        random = np.random.default_rng(seed)
        learner = np.repeat(np.arange(40), 50)
        member = random.random(2000) < 0.5
        scores = 0.05 * random.normal(size=2000) + random.normal(size=40)[learner]
        scores += 1.0 * member * (random.random(40) < 0.5)[learner]
        return epsilon_lower_bound(scores, member, groups=learner if grouped else None) > true

    assert sum(trial(seed, True) for seed in range(100)) <= 10


def test_the_probability_in_one_run_is_that_of_the_paper():
    """The algorithm is that of its appendix D."""

    def paper(m, r, v, eps, delta):
        q = 1 / (1 + np.exp(-eps))
        beta = binom.sf(v - 1, r, q)
        alpha, total = 0.0, 0.0
        for i in range(1, v + 1):
            total += binom.pmf(v - i, r, q)
            if total > i * alpha:
                alpha = total / i
        return min(beta + alpha * delta * 2 * m, 1)

    for m, r, v in [(100, 40, 30), (1000, 1000, 600), (5000, 300, 290), (50, 50, 10)]:
        for eps in (0.0, 0.5, 2.0):
            assert module._chance(m, r, v, 1e-3, eps) == pytest.approx(paper(m, r, v, eps, 1e-3), abs=1e-12)


def test_the_gaussian_bound_inverts_the_trade_off_curve():
    scores, member = gaussian_scores(1.0, 100_000, 100_000, 2)
    assert gaussian_epsilon_lower_bound(scores, member) < gaussian_epsilon(1.0, 1, DELTA)
    assert gaussian_epsilon_lower_bound(scores, member) > gaussian_epsilon(1 / 0.9, 1, DELTA)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("scores", "member", "settings", "said"),
    [
        ([0.0, np.nan], [True, False], {}, "scores: must not be NaN, got 1 NaN of 2"),
        ([0.0, 1.0], [1, 0], {}, "member: must be booleans, got int64"),
        ([0.0], [True, False], {}, "must have the same shape"),
        ([0.0, 1.0], [True, False], {"delta": 1.0}, "delta: must be in"),
        ([0.0, 1.0], [True, False], {"confidence": 0.0}, "confidence: must be in"),
    ],
)
def test_invalid_arguments_are_named(bound, scores, member, settings, said):
    with pytest.raises(ValueError, match=said):
        bound(np.array(scores), np.array(member), **settings)


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_bound_is_0_without_members_or_non_members(bound):
    assert bound(np.arange(5.0), np.ones(5, bool)) == 0
    assert bound(np.arange(5.0), np.zeros(5, bool)) == 0


@pytest.mark.parametrize("bound", BOUNDS)
def test_infinite_scores_are_allowed(bound):
    member = np.arange(200) < 100
    assert bound(np.where(member, np.inf, -np.inf), member) == bound(member.astype(float), member) > 1
