"""Adaptive clipping: the norm finds its quantile, the count is paid for, and the norm travels with the parameters."""

import math

import pytest
import torch
from small_federation import federation

from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.rules import first_order_maml
from metaleak.defenses import (
    CLIP_NAME,
    AdaptiveClip,
    DistributedGaussian,
    GaussianMechanism,
    RandomSource,
    RecordLevel,
    gaussian_epsilon,
)
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.errors import WrongUsage
from metaleak.server.learning.optimizer import OuterOptimizer


def test_the_noise_of_mean_and_count_together_is_what_is_accounted_for():
    """1 / z^2 is the sum of both, whatever part the count takes."""
    for count_noise in (1.5, 4.0, 50.0):
        adapt = AdaptiveClip(count_noise=count_noise)
        whole = GaussianMechanism(clip=2.0, noise_multiplier=3.0, adapt=adapt)
        of_mean = whole.standard_deviation / whole.sensitivity
        of_count = whole.multiplier * count_noise
        assert of_mean**-2 + of_count**-2 == pytest.approx(3.0**-2)
        assert whole.epsilon_after(5) == gaussian_epsilon(3.0, 5, 1e-5)
    ready = RecordLevel(noise_multiplier=3.0, clip=2.0, adapt=adapt).for_readings({"support": 1, "query": 1})
    plain = RecordLevel(noise_multiplier=3.0, clip=2.0).for_readings({"support": 1, "query": 1})
    assert ready.standard_deviation("query", 10) > plain.standard_deviation("query", 10)
    assert ready.standard_deviation("support", 10) == plain.standard_deviation("support", 10)
    assert ready.epsilons_after(3) == plain.epsilons_after(3)


@pytest.mark.parametrize("size", [0.1, 1.0, 50.0])
def test_the_count_has_the_noise_that_it_pays_for(size):
    adapt = AdaptiveClip(quantile=0.3, rate=0.5, count_noise=4.0)
    mechanism = GaussianMechanism(clip=1.0, noise_multiplier=0.5, adapt=adapt)
    tensors = {"w": torch.full((4,), size / 2)}
    said = [float(mechanism(tensors, RandomSource.of(number))[CLIP_NAME]) for number in range(2000)]
    below = float(size <= 1.0)
    assert torch.tensor(said).mean() == pytest.approx(0.5 * (below - 0.3), abs=0.1)
    assert torch.tensor(said).std() == pytest.approx(0.5 * 4.0 * 0.5, rel=0.06)
    shared = DistributedGaussian(clip=1.0, noise_multiplier=0.5, adapt=adapt).for_learners(16)
    one = [float(shared(tensors, RandomSource.of(number))[CLIP_NAME]) for number in range(2000)]
    assert torch.tensor(one).std() == pytest.approx(0.5 * 4.0 * 0.5 / 4, rel=0.06)


@pytest.mark.parametrize("kind", ["record-level", "gaussian"])
def test_the_norm_goes_to_the_quantile_of_the_norms(kind):
    """Without noise: after some rounds half of the norms are below it, from far above as from far below."""
    mechanisms = {
        "record-level": RecordLevel(noise_multiplier=0.0, clip=1e4, adapt=AdaptiveClip(rate=0.9)).for_readings(
            {"support": 1, "query": 1}
        ),
        "gaussian": GaussianMechanism(noise_multiplier=0.0, clip=1e-4, adapt=AdaptiveClip(rate=0.9)),
    }
    everyone = federation(rule=first_order_maml(), defenses=(mechanisms[kind],))
    steps = OuterOptimizer(name="sgd", rate=1e-9).over(everyone.initial_parameters())
    begun = float(steps.parameters[CLIP_NAME])
    for round in range(1, 41):
        sent, _ = cohort_meta_gradients(everyone.learners(range(8)), steps.parameters, round)
        assert set(sent) == set(steps.parameters)
        said = float(sent[CLIP_NAME].mean())
        steps.step({name: value.mean(0).numpy() for name, value in sent.items()})
    assert abs(said) < 0.3, "about half of them"
    assert 0.01 < math.exp(float(steps.parameters[CLIP_NAME])) < 100
    assert abs(float(steps.parameters[CLIP_NAME]) - begun) > 5


def test_a_run_carries_the_norm_and_the_model_never_meets_it():
    experiment = experiment_from(
        {
            "rule": "fomaml",
            "partition": {"learners": 4},
            "shares": ["layer1.*"],
            "defenses": [{"name": "record-level", "epsilon": 8, "adapt": {"quantile": 0.8}}],
        },
        "test",
    )
    everyone = experiment.federation()
    sent = everyone.shared(everyone.initial_parameters())
    assert set(sent) == {"layer1.weight", "layer1.bias", CLIP_NAME}
    assert set(everyone.whole(sent)) == set(everyone.initial_parameters())
    assert CLIP_NAME not in everyone.computed(everyone.initial_parameters())[1]
    told = everyone.learner(0).told({**sent, CLIP_NAME: torch.tensor([math.log(0.25)])})
    assert told.defenses[0].clip_of("query") == pytest.approx(0.25)
    assert told.defenses[0].clip_of("support") == 1.0
    wild = everyone.learner(0).told({**sent, CLIP_NAME: torch.tensor([1e9])})
    assert wild.defenses[0].sent_clip <= 1e12


def test_nothing_else_may_change_what_is_sent():
    adaptive = {"name": "gaussian", "clip": 1, "epsilon": 8, "adapt": {}}
    for other in ({"name": "sign"}, adaptive, {"name": "record-level", "epsilon": 8, "adapt": {}}):
        with pytest.raises(WrongUsage, match=r"with an adaptive clipping norm no other defense may act"):
            experiment_from({"rule": "fomaml", "defenses": [adaptive, other]}, "test")
