"""Intervals for targets that lie in clusters of two kinds at once."""

import numpy as np
import pytest
import torch

from metaleak.attacks.evaluation.intervals import of_crossed, of_resampled
from metaleak.attacks.evaluation.membership import evaluate


def test_intervals_cover_points_and_victims():
    """Where scores depend on the point alone, or on the victim alone, the number of these is the sample size."""
    random = torch.Generator().manual_seed(1)
    points, victims = 60, 12
    point, victim = torch.arange(points).repeat(victims), torch.arange(victims).repeat_interleave(points)
    member = torch.rand(points * victims, generator=random) < 0.5
    noise = torch.randn(points * victims, generator=random)
    shared = 3 * torch.randn(victims, points, generator=random).mean(1)[victim] * 6

    def width(scores, **groups):
        found = evaluate(scores.numpy(), member.numpy(), resamples=300, **groups).auc
        return found.high - found.low

    free = width(noise)
    assert width(noise, groups=point.numpy(), crossed=victim.numpy()) < 1.6 * free
    by_victim = width(noise + shared, groups=victim.numpy())
    assert width(noise + shared, groups=point.numpy(), crossed=victim.numpy()) > 0.9 * by_victim


def test_the_variance_is_that_of_both_kinds_minus_that_of_single_targets():
    random = np.random.default_rng(1)
    first, second, unit = (0.7 + scale * random.standard_normal(4000) for scale in (0.02, 0.015, 0.005))
    found = of_crossed(0.7, first, second, unit, (400, 300), 10_000)
    combined = 0.7 + np.sqrt(0.02**2 + 0.015**2 - 0.005**2) * random.standard_normal(4000)
    expected = of_resampled(0.7, combined, 300, 10_000)
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.05)
    # Never narrower than with the kind of larger variance alone.
    alone = of_crossed(0.7, first, unit, first, (400, 300), 10_000)
    assert alone.high - alone.low >= 0.99 * (of_resampled(0.7, first, 300, 10_000).high - 0.7) * 2 * 0.95


def test_without_variation_the_interval_is_clopper_pearson():
    same = np.full(50, 1.0)
    assert of_crossed(1.0, same, same, same, (10, 10), 100) == of_resampled(1.0, same, 10, 100)
