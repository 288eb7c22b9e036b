"""Evaluation against scikit-learn, closed forms, and properties that must hold for any scores."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import norm
from sklearn import metrics

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.membership import Evaluation, evaluate
from metaleak.attacks.evaluation.roc import non_members_needed, roc_curve

Sample = tuple[np.ndarray, np.ndarray]


def binormal(members: int, non_members: int, shift: float, seed: int = 0) -> Sample:
    random = np.random.default_rng(seed)
    scores = np.concatenate([random.normal(shift, 1, members), random.normal(0, 1, non_members)])
    return scores, np.arange(members + non_members) < members


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Few distinct values, so that ties are common."""
    member = draw(st.lists(st.booleans(), min_size=2, max_size=60).filter(lambda m: any(m) and not all(m)))
    values = st.integers(-6, 6)
    scores = draw(st.lists(values, min_size=len(member), max_size=len(member)))
    return np.array(scores, float), np.array(member)


@given(samples())
@settings(max_examples=200, deadline=None)
def test_equals_scikit_learn_with_ties(sample: Sample) -> None:
    scores, member = sample
    evaluation = evaluate(scores, member, resamples=1)
    fpr, tpr, _ = metrics.roc_curve(member, scores, drop_intermediate=False)
    assert evaluation.auc.value == pytest.approx(metrics.roc_auc_score(member, scores), abs=1e-12)
    assert evaluation.balanced_accuracy.value == pytest.approx(((tpr + 1 - fpr) / 2).max(), abs=1e-12)
    if (at_ten_percent := evaluation.tpr["0.1"]) is not None:
        assert at_ten_percent.value == pytest.approx(tpr[fpr <= 0.1 + 1e-9].max(), abs=1e-12)
    else:
        assert evaluation.non_members < 10


@given(samples())
@settings(max_examples=200, deadline=None)
def test_curve_is_scikit_learns_without_redundant_points(sample: Sample) -> None:
    scores, member = sample
    fpr, tpr = roc_curve(scores, member)
    full_fpr, full_tpr, _ = metrics.roc_curve(member, scores, drop_intermediate=False)
    assert set(zip(fpr, tpr, strict=True)) <= set(zip(full_fpr, full_tpr, strict=True))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert metrics.auc(fpr, tpr) == pytest.approx(metrics.auc(full_fpr, full_tpr), abs=1e-12)


@given(samples(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_only_the_order_of_scores_counts(sample: Sample, clustered: bool) -> None:
    scores, member = sample
    groups = np.arange(len(scores)) // 2 if clustered and len(scores) > 2 else None
    expected = evaluate(scores, member, groups=groups, resamples=20)
    assert evaluate(np.exp(scores / 3), member, groups=groups, resamples=20) == expected


@given(samples())
@settings(max_examples=100, deadline=None)
def test_swapping_the_classes_mirrors_the_auc(sample: Sample) -> None:
    scores, member = sample
    auc = evaluate(scores, member, resamples=1).auc.value
    assert evaluate(scores, ~member, resamples=1).auc.value == pytest.approx(1 - auc, abs=1e-12)
    assert evaluate(-scores, member, resamples=1).auc.value == pytest.approx(1 - auc, abs=1e-12)


@given(samples())
@settings(max_examples=100, deadline=None)
def test_every_interval_is_ordered_and_json_keeps_it(sample: Sample) -> None:
    evaluation = evaluate(*sample, resamples=50)
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation
    for estimate in (evaluation.auc, evaluation.balanced_accuracy, *evaluation.tpr.values()):
        assert estimate is None or 0 <= estimate.low <= estimate.high <= 1


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_binormal_closed_form(shift: float) -> None:
    evaluation = evaluate(*binormal(200_000, 200_000, shift), resamples=1)
    assert evaluation.auc.value == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.004)
    assert evaluation.balanced_accuracy.value == pytest.approx(norm.cdf(shift / 2), abs=0.005)
    for level, estimate in evaluation.tpr.items():
        assert estimate is not None
        assert estimate.value == pytest.approx(norm.cdf(shift - norm.isf(float(level))), abs=0.01)


def test_the_interval_covers_the_truth_about_95_times_of_100() -> None:
    auc, tpr, runs = norm.cdf(1 / np.sqrt(2)), norm.cdf(1 - norm.isf(0.1)), 300
    auc_hits = tpr_hits = 0
    for seed in range(runs):
        evaluation = evaluate(*binormal(100, 100, 1.0, seed), resamples=300, seed=seed)
        at_ten_percent = evaluation.tpr["0.1"]
        assert at_ten_percent is not None
        auc_hits += evaluation.auc.low <= auc <= evaluation.auc.high
        tpr_hits += at_ten_percent.low <= tpr <= at_ten_percent.high
    assert 0.91 <= auc_hits / runs <= 0.985
    assert 0.90 <= tpr_hits / runs <= 0.99


def test_resampling_learners_covers_what_resampling_targets_misses() -> None:
    """Ten targets of a learner share a large random shift, so that they are worth little more than one."""
    runs, hits_by_target, hits_by_learner = 150, 0, 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        learner = np.repeat(np.arange(60), 10)
        member = learner < 30
        scores = np.repeat(random.normal(size=60), 10) + 0.3 * random.normal(size=600) + member
        truth = norm.cdf(1 / np.sqrt(2 * (1 + 0.3**2)))
        by_target = evaluate(scores, member, resamples=200).auc
        by_learner = evaluate(scores, member, groups=learner, resamples=200).auc
        hits_by_target += by_target.low <= truth <= by_target.high
        hits_by_learner += by_learner.low <= truth <= by_learner.high
    assert hits_by_target / runs < 0.75
    assert 0.88 <= hits_by_learner / runs <= 0.99


def test_groups_of_one_target_each_are_the_ordinary_bootstrap() -> None:
    scores, member = binormal(50, 70, 1.0)
    plain = evaluate(scores, member)
    grouped = evaluate(scores, member, groups=np.arange(120))
    assert grouped.model_copy(update={"clusters": None}).auc.value == plain.auc.value
    assert grouped.clusters == 120
    assert grouped.auc.low == pytest.approx(plain.auc.low, abs=0.02)


def test_groups_may_be_names_and_may_hold_both_classes() -> None:
    scores, member = binormal(50, 50, 1.0)
    names = np.array([f"learner-{index % 20}" for index in range(100)])
    assert evaluate(scores, member, groups=names).clusters == 20


def test_with_a_single_group_targets_are_resampled_and_clusters_is_1() -> None:
    scores, member = binormal(50, 70, 1.0)
    single = evaluate(scores, member, groups=np.zeros(120))
    assert single.clusters == 1
    assert single.model_copy(update={"clusters": None}) == evaluate(scores, member)


def test_too_few_non_members_leave_a_rate_unresolved() -> None:
    assert evaluate(*binormal(20, 99, 1.0), resamples=5).tpr["0.01"] is None
    assert evaluate(*binormal(20, 100, 1.0), resamples=5).tpr["0.01"] is not None
    assert [non_members_needed(level) for level in (0.1, 0.01, 0.001)] == [10, 100, 1000]


def test_perfect_and_worthless_scores() -> None:
    member = np.arange(20) < 10
    perfect = evaluate(member.astype(float), member)
    # As sure as ten members without a miss make it.
    assert perfect.auc == perfect.balanced_accuracy == perfect.tpr["0.1"]
    assert (perfect.auc.value, perfect.auc.high) == (1, 1)
    assert perfect.auc.low == pytest.approx(0.025 ** (1 / 10))
    constant = evaluate(np.zeros(20), member)
    assert constant.auc == constant.balanced_accuracy
    assert constant.auc.low < constant.auc.value == 0.5 < constant.auc.high
    unseen = constant.tpr["0.1"]
    assert unseen is not None
    assert (unseen.value, unseen.low, unseen.high) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 10)))


def test_infinite_scores_are_allowed() -> None:
    finite = evaluate([3.0, 2.0, 1.0, 0.0], [True, False, True, False])
    assert evaluate([np.inf, 2.0, 1.0, -np.inf], [True, False, True, False]) == finite


def test_same_seed_same_result_and_other_seed_other_interval() -> None:
    sample = binormal(60, 60, 1.0)
    assert evaluate(*sample) == evaluate(*sample)
    assert evaluate(*sample, seed=1).auc.low != evaluate(*sample).auc.low


def test_a_thousand_resamples_of_a_thousand_targets_take_under_a_second() -> None:
    sample = binormal(500, 500, 1.0)
    start = time.process_time()
    evaluate(*sample)
    assert time.process_time() - start < 1


def test_blocks_of_resamples_bound_the_memory_without_changing_the_value() -> None:
    scores, member = binormal(1500, 1500, 1.0)
    evaluation = evaluate(scores, member, resamples=1500)  # More than one block.
    assert evaluation.auc.low < evaluation.auc.value < evaluation.auc.high


@pytest.mark.parametrize(
    ("scores", "member", "message"),
    [
        ([1.0, np.nan, np.nan], [True, False, True], "got 2 NaN of 3"),
        ([1.0, 2.0], [True, True], "members and non-members, got 2 and 0"),
        ([1.0, 2.0], [False, False], "members and non-members, got 0 and 2"),
        ([1.0, 2.0], [1, 0], "booleans"),
        ([1.0], [True, False], "same shape"),
        ([[1.0, 2.0]], [[True, False]], "same shape"),
    ],
)
def test_invalid_scores_and_truth_are_named(scores: list[float], member: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(scores, member)


def test_invalid_groups_and_resamples_are_named() -> None:
    with pytest.raises(ValueError, match="groups"):
        evaluate([1.0, 2.0], [True, False], groups=[0, 0, 1])
    with pytest.raises(ValueError, match="resamples: must be at least 1, got 0"):
        evaluate([1.0, 2.0], [True, False], resamples=0)


def test_an_estimate_is_a_rate() -> None:
    with pytest.raises(ValidationError):
        Estimate(value=1.2, low=0, high=1)
