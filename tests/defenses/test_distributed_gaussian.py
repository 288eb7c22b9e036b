"""Distributed noise: the sum has enough of it, and with fewer learners than that there is no guarantee."""

import pytest
import torch

from metaleak.clients.rules import MAML, FedAvg, FedSGD, Reptile, first_order_maml
from metaleak.defenses import (
    DistributedGaussian,
    DistributedRecordLevel,
    GaussianMechanism,
    RandomSource,
    RecordLevel,
    SharesNoise,
    gaussian_epsilon,
)
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
    with pytest.raises(WrongUsage, match=r"defenses.0.least_learners: with faults it is not certain"):
        experiment({"name": "secure-aggregation"}, faults={"dropout": 0.1})
    with pytest.raises(ValueError, match=r"^least_learners: 3 answer in a round, the noise is shared by more, got 4"):
        DistributedGaussian(clip=1, noise_multiplier=1, least_learners=4).for_learners(3)
    with pytest.raises(ValueError, match=r"^least_learners: must be given"):
        DistributedGaussian(clip=1, noise_multiplier=1)({"w": torch.zeros(2)}, RandomSource.of(0))


def test_record_level_noise_is_shared_where_the_mean_is_sent_and_whole_where_the_rule_goes_on_with_it():
    readings = first_order_maml().readings
    whole = RecordLevel(epsilon=8, releases=10).for_readings(readings)
    shared = DistributedRecordLevel(epsilon=8, releases=10).for_readings(readings).for_learners(25)
    assert shared.standard_deviation("support", 25) == whole.standard_deviation("support", 25)
    assert shared.standard_deviation("query", 75) == pytest.approx(
        whole.standard_deviation("query", 75) / 5, rel=1e-12
    )
    assert shared.epsilons_after(10) == whole.epsilons_after(10)
    assert DistributedRecordLevel(noise_multiplier=1).for_readings(FedSGD().readings)


@pytest.mark.parametrize("rule", [Reptile(), MAML(), FedAvg(batch=9)], ids=str)
def test_a_rule_that_computes_with_what_it_sends_is_refused(rule):
    with pytest.raises(ValueError, match=r"^name: only a mean that is sent as it is can share its noise"):
        DistributedRecordLevel(noise_multiplier=1).for_readings(rule.readings)


@pytest.mark.parametrize(
    "later", [{"name": "pruning", "keep": 0.5}, {"name": "noise"}, {"name": "quantization", "bits": 8}]
)
def test_nothing_may_change_a_message_after_its_share_of_the_noise(later):
    """What removes the others' noise, such as pruning, leaves one learner's message in the sum."""
    with pytest.raises(WrongUsage, match=r"defenses.0.name: no defense may change a message after noise"):
        experiment(later, {"name": "secure-aggregation"})


def test_pruning_before_the_noise_is_no_concern():
    defenses = [
        {"name": "pruning", "keep": 0.5},
        {"name": "metaleak.defenses:DistributedGaussian", "clip": 1, "epsilon": 8},
        {"name": "secure-aggregation"},
    ]
    assert len(experiment(defenses=defenses).built_defenses()) == 3


def test_only_noise_may_act_on_the_sets_beside_a_mechanism_for_each_example():
    private = {"name": "metaleak.defenses:RecordLevel", "clip": 1, "epsilon": 8}
    shared = {"rule": "fomaml"}
    assert experiment(defenses=[{"name": "noise", "place": "query"}, private], **shared).built_defenses()
    with pytest.raises(WrongUsage, match="only noise may act on the support and query sets"):
        experiment(defenses=[{"name": f"{__name__}:Mixing"}, private], **shared)


class Mixing:
    """Makes every image the mean of its set."""

    place = "support"

    def __call__(self, tensors, random):
        return {name: value.mean(0, keepdim=True).expand_as(value) for name, value in tensors.items()}


@pytest.mark.parametrize("readings", [{"query": 2}, {"all": 1, "query": 1}, {"all": 2}])
def test_a_rule_that_computes_with_a_mean_before_it_is_sent_cannot_share_its_noise(readings):
    with pytest.raises(ValueError, match="only a mean that is sent as it is can share its noise"):
        DistributedRecordLevel(clip=1, noise_multiplier=1).for_readings(readings)
