"""Per-target distributions: the exact ratio of two normal ones, and the z-score in one of them."""

import pytest
import torch

from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.shadows.per_example_distributions import Samples, per_example_scores


def drawn(count: int, samples: int, spread: float = 2.0):
    """Return samples of targets whose means differ widely, half of them members, and the means."""
    generator = torch.Generator().manual_seed(0)
    low = 10 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    high = low + 3

    def around(mean, width):
        return mean + spread * torch.randn(count, width, generator=generator, dtype=torch.float64)

    member = torch.arange(count) % 2 == 0
    statistic = torch.where(member, around(high, 1)[:, 0], around(low, 1)[:, 0])
    return Samples(statistic, around(low, samples), around(high, samples)), member, low[:, 0]


def test_the_ratio_is_that_of_the_two_normal_distributions():
    samples, _, low = drawn(1000, 2000)
    normal = torch.distributions.Normal
    exact = normal(low + 3, 2.0).log_prob(samples.statistic) - normal(low, 2.0).log_prob(samples.statistic)
    assert (per_example_scores(samples) - exact).abs().mean() < 0.1


def test_without_shadows_that_hold_the_target_the_score_is_a_z_score():
    samples, _, low = drawn(1000, 2000)
    found = per_example_scores(Samples(samples.statistic, samples.outside, None))
    assert (found - (samples.statistic - low) / 2).abs().mean() < 0.05


@pytest.mark.parametrize("both", [True, False])
def test_targets_of_different_scale_are_found_where_a_pooled_threshold_fails(both):
    samples, member, _ = drawn(2000, 8)

    def auc(scores):
        return evaluate(scores.numpy(), member.numpy(), resamples=1).auc.value

    found = per_example_scores(Samples(samples.statistic, samples.outside, samples.inside if both else None))
    assert auc(found) > auc(samples.statistic) + 0.2
    # Two normal distributions 1.5 deviations apart, whose means are known to a deviation over the root of 8.
    assert auc(found) == pytest.approx(0.84, abs=0.03)


def test_samples_without_variance_have_finite_scores():
    still = torch.ones(4, 3, dtype=torch.float64)
    assert per_example_scores(Samples(still[:, 0], still, still)).isfinite().all()
