"""Audits: near the truth for the mechanisms of ours, and above the promise for broken ones."""

import numpy as np
import pytest
import torch

from metaleak.attacks.evaluation.empirical_epsilon import gaussian_epsilon_of_guesses
from metaleak.clients.rules import MAML, FedAvg, FedSGD, Reptile, first_order_maml
from metaleak.defenses import (
    CLIP_NAME,
    AdaptiveClip,
    DistributedGaussian,
    DistributedRecordLevel,
    GaussianMechanism,
    Noise,
    RandomSource,
    RecordLevel,
    gaussian_epsilon,
)
from metaleak.defenses.gaussian_mechanism import clipped, norm_of
from metaleak.deploy.audits.audit import Trials, audit
from metaleak.deploy.audits.canaries import canary_for
from metaleak.deploy.results.schema import PrivacyViolation

FEW = Trials(trials=300, confidence=0.95)


def audited(defense, rule=None, asks="query", rounds=1, trials=FEW):
    canary, delta = canary_for(defense, rule or first_order_maml(), asks, rounds, seed=0)
    return audit(canary, delta, trials)


class HalfTheNoise(GaussianMechanism):
    """Broken: it takes the clipping norm for the sensitivity, which is twice that."""

    @property
    def sensitivity(self):
        return self.clip


class SameNoise(GaussianMechanism):
    """Broken: the noise of a learner's first round serves for the second."""

    def __call__(self, tensors, random):
        if REUSED:
            return super().__call__(tensors, RandomSource(REUSED.pop()))
        REUSED.append(random.key)
        return super().__call__(tensors, random)


REUSED: list[bytes] = []
"""The key of the round before."""


class ClippedAfterwards(GaussianMechanism):
    """Broken: the noise is added before the clipping, which then takes most of it off again."""

    def __call__(self, tensors, random):
        noisy = {
            name: value + self.standard_deviation * random.normal(value.shape) for name, value in tensors.items()
        }
        return clipped(noisy, self.clip)


class UnclippedExamples(RecordLevel):
    """Broken: examples are as large as they are."""

    def weights(self, norms, reading):
        return torch.ones_like(norms, dtype=torch.float64)


class SumForMean(RecordLevel):
    """Broken: the noise is that of a mean of twice as many examples."""

    def standard_deviation(self, reading, count):
        return super().standard_deviation(reading, 2 * count)


def test_of_many_guesses_the_truth_is_bounded_from_below_and_nearly_reached():
    """A bound on the true mu, not above it more often than it may be."""
    mu, draws, runs = 1.5, 4000, 200
    random = np.random.default_rng(0)
    truth = gaussian_epsilon(1 / mu, 1, 1e-5)
    rights = (random.normal(size=(runs, draws)) < mu / 2).sum(axis=1)
    bounds = [gaussian_epsilon_of_guesses(int(right), draws) for right in rights]
    assert np.mean([bound > truth for bound in bounds]) < 0.1
    assert np.median(bounds) > 0.93 * truth
    assert gaussian_epsilon_of_guesses(draws // 2, draws) == 0
    with pytest.raises(ValueError, match=r"^right: must be in \[0, 3\]"):
        gaussian_epsilon_of_guesses(4, 3)


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_gaussian_mechanism_keeps_its_promise_and_just_so(rounds):
    found = audited(GaussianMechanism(clip=0.5, epsilon=8), rounds=rounds)
    found.check()
    assert 0.6 * found.accounted < found.lower_bound <= found.accounted == pytest.approx(8)


def test_the_sum_of_shares_of_noise_keeps_its_promise():
    # A bound at 95 % confidence exceeds a tight promise by chance, here with one seed in forty.
    found = audited(DistributedGaussian(clip=0.5, epsilon=4), trials=Trials(trials=600, seed=3))
    found.check()
    assert 0.5 * found.accounted < found.lower_bound


@pytest.mark.parametrize(
    ("rule", "asks"),
    [
        (first_order_maml(), "query"),
        (first_order_maml(), "support"),
        (Reptile(inner_steps=2), "support"),
        (FedSGD(), "query"),
        (FedAvg(), "support"),
    ],
    ids=str,
)
def test_record_level_rules_keep_their_promise_for_each_set_and_nearly_so(rule, asks):
    found = audited(RecordLevel(epsilon=8), rule, asks)
    found.check()
    assert 0.5 * found.accounted < found.lower_bound <= found.accounted == pytest.approx(8)


class FreeCount(GaussianMechanism):
    """Broken: what is said of the clipping norm has next to no noise, and the mean as little more as if it had."""

    def __call__(self, tensors, random):
        sent = super().__call__(tensors, random)
        below = float(norm_of(tensors) <= self.clip)
        return {**sent, CLIP_NAME: torch.full((1,), self.adapt.fall(below) + 1e-3 * float(random.normal((1,))))}


@pytest.mark.parametrize(
    ("defense", "asks"),
    [
        (GaussianMechanism(clip=1, epsilon=8, adapt=AdaptiveClip(count_noise=2)), "query"),
        (DistributedGaussian(clip=1, epsilon=8, adapt=AdaptiveClip(count_noise=2)), "query"),
        (RecordLevel(epsilon=8, adapt=AdaptiveClip(count_noise=2)), "query"),
        (RecordLevel(epsilon=8, adapt=AdaptiveClip(count_noise=2)), "support"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_a_mechanism_whose_norm_adapts_keeps_its_promise_and_just_so(defense, asks):
    found = audited(defense, asks=asks, trials=Trials(trials=600))
    found.check()
    assert 0.5 * found.accounted < found.lower_bound


def test_a_count_that_nobody_pays_for_is_caught():
    assert audited(FreeCount(clip=1, epsilon=4, adapt=AdaptiveClip())).exceeded


@pytest.mark.parametrize("asks", ["query", "support"])
def test_record_level_privacy_of_a_sum_keeps_its_promise(asks):
    found = audited(DistributedRecordLevel(epsilon=8), asks=asks, trials=Trials(trials=160, confidence=0.95))
    found.check()
    assert 0.3 * found.accounted < found.lower_bound


def test_second_order_with_means_of_its_own_keeps_it_too():
    found = audited(RecordLevel(epsilon=8), MAML(), "support", trials=Trials(trials=200))
    found.check()
    assert found.lower_bound > 1.5, "half of what is released is about the gradient, which this canary is made for"


@pytest.mark.parametrize(
    ("broken", "asks", "rounds"),
    [
        (HalfTheNoise(clip=1, epsilon=4), "query", 1),
        (SameNoise(clip=1, epsilon=4), "query", 2),
        (ClippedAfterwards(clip=1, epsilon=4), "query", 1),
        (SumForMean(epsilon=4), "query", 1),
        (SumForMean(epsilon=4), "support", 1),
        (UnclippedExamples(epsilon=4), "query", 1),
        (UnclippedExamples(epsilon=4), "support", 1),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, GaussianMechanism | RecordLevel) else str(one),
)
def test_a_broken_mechanism_is_caught(broken, asks, rounds):
    found = audited(broken, asks=asks, rounds=rounds)
    assert found.exceeded
    with pytest.raises(PrivacyViolation, match=r"^the audit proves epsilon .* more than the accounted 4: a bug"):
        found.check()


@pytest.mark.parametrize(
    ("defense", "rule", "message"),
    [
        (Noise(), None, "name: Noise has no guarantee that could be audited"),
        (GaussianMechanism(clip=1, noise_multiplier=0), None, "noise_multiplier: .* no finite epsilon"),
        (GaussianMechanism(clip=1, epsilon=1, releases=1), None, "releases: a learner takes part in 2 rounds"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(defense, rule, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        canary_for(defense, rule or MAML(), "query", 2, seed=0)
