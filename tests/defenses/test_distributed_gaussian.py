"""Distributed noise: the sum has enough of it, for fewer learners than that there is no guarantee."""

import pytest
import torch

from metaleak.defenses import DistributedGaussian, GaussianMechanism, RandomSource, SharesNoise, gaussian_epsilon
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.errors import WrongUsage


def test_the_sum_of_all_shares_has_the_noise_of_the_central_mechanism():
    ready = DistributedGaussian(clip=0.5, noise_multiplier=3).for_learners(16)
    assert isinstance(ready, SharesNoise)
    sent = [ready({"w": torch.zeros(2000)}, RandomSource.of(number))["w"] for number in range(16)]
    assert torch.stack(sent).sum(0).std().item() == pytest.approx(3 * 2 * 0.5, rel=0.05)
    alone = GaussianMechanism(clip=0.5, noise_multiplier=3)
    assert ready.standard_deviation == alone.standard_deviation / 4


def test_epsilon_is_that_of_the_sums_of_the_run():
    ready = DistributedGaussian(clip=1, epsilon=8).for_learners(100).for_releases(40)
    assert ready.epsilon_after(40) == pytest.approx(8)
    assert ready.epsilon_after(40) == gaussian_epsilon(ready.multiplier, 40, 1e-5)


def experiment(*defenses, **changes):
    return experiment_from(
        {
            "partition": {"learners": 40},
            "server": {"rounds": 3, "fraction": 0.5},
            "defenses": [{"name": "metaleak.defenses:DistributedGaussian", "clip": 1, "epsilon": 8}, *defenses],
            "attacks": [],
            **changes,
        },
        "test",
    )


def test_an_experiment_counts_who_answers():
    ready = experiment({"name": "secure-aggregation"}).built_defenses()[0]
    assert (ready.least_learners, ready.releases) == (20, 3)


def test_without_secure_aggregation_or_with_faults_there_is_no_guarantee_and_so_no_run():
    with pytest.raises(WrongUsage, match=r"defenses.0.name: its guarantee is about the sum of a round"):
        experiment()
    with pytest.raises(WrongUsage, match=r"defenses.0.least_learners: with faults no number"):
        experiment({"name": "secure-aggregation"}, faults={"dropout": 0.1})
    with pytest.raises(ValueError, match=r"^least_learners: 3 answer in a round, the noise is shared by more, got 4"):
        DistributedGaussian(clip=1, noise_multiplier=1, least_learners=4).for_learners(3)
    with pytest.raises(ValueError, match=r"^least_learners: must be given"):
        DistributedGaussian(clip=1, noise_multiplier=1)({"w": torch.zeros(2)}, RandomSource.of(0))
