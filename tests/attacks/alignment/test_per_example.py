"""Per-example ratios: shadows with and without the target, compared with a pooled distribution."""

from dataclasses import replace

import pytest
import torch
from membership_questions import observed, questions

from metaleak.attacks.alignment.alignment import Alignment
from metaleak.attacks.alignment.per_example import PerExampleAlignment
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.refusal import refusal
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.attacks.shadows.shadow_learners import shadow_learners, with_example
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.episode import Episode
from metaleak.clients.federation import Federation
from metaleak.clients.models import Conv4
from metaleak.clients.partition import Partition, TaskShape
from metaleak.clients.rules import MAML
from metaleak.defenses import Noise, RandomSource, SecureAggregation

LEARNERS = list(range(6))
SMALL = {"stand_ins": 2, "samples": 300, "shadows": 12}


def world(scale: float = 0.0) -> Federation:
    return Federation(
        seed=3,
        data=EmbeddedMNIST(),
        task=TaskShape(ways=5, shots=2, queries=3),
        partition=Partition(learners=len(LEARNERS), held_out=0.4),
        model=Conv4(filters=8, normalization="none"),
        rule=MAML(),
        defenses=(Noise(place="shared", scale=scale),) if scale else (),
    )


@pytest.mark.parametrize("asks", ["query", "support"])
def test_a_shadow_with_an_example_has_the_gradient_of_a_learner_with_it(asks):
    federation = world()
    observation = observed(federation, LEARNERS)
    shadows = shadow_learners(observation, OwnExamples.of(observation), 2, RandomSource.of(0))
    images, positions = torch.rand(3, 1, 28, 28), torch.tensor([4, 0, 4])
    found = with_example(observation, shadows, 1, asks, images, positions, RandomSource.of(1))
    sets = {"support": shadows.support[1].clone(), "query": shadows.query[1].clone()}
    sets[asks][4, 0] = images[2]
    labels = torch.arange(5)
    episode = Episode(
        sets["support"].flatten(0, 1),
        labels.repeat_interleave(2),
        sets["query"].flatten(0, 1),
        labels.repeat_interleave(3),
    )
    gradient, _ = federation.rule.meta_gradient(federation.model, observation.parameters, episode)
    for name, value in gradient.items():
        torch.testing.assert_close(found[name][2], value, rtol=1e-4, atol=1e-6)


def test_per_target_distributions_find_more_than_a_pooled_one():
    federation = world(scale=1.5)
    observation = observed(federation, LEARNERS)
    targets, member = questions(federation, LEARNERS, 1, "query", 60, 100)

    def auc(attack):
        scores = attack(observation, targets, seed=0).scores
        return evaluate(scores.numpy(), member.numpy(), resamples=1).auc.value

    pooled = auc(Alignment(**SMALL))
    for variant in ("online", "offline"):
        assert auc(PerExampleAlignment(variant=variant, each=6, **SMALL)) > pooled
    assert auc(PerExampleAlignment(variant="learners", **SMALL)) > 0.6


@pytest.mark.parametrize("variant", ["online", "offline", "learners"])
def test_a_mean_over_learners_is_refused(variant):
    attack = PerExampleAlignment(variant=variant, **SMALL)
    assert refusal(attack, world().model) is None
    said = refusal(attack, world().model, (SecureAggregation(),))
    assert said.startswith("does not apply: it needs the gradients of single learners")
    targets, _ = questions(world(), LEARNERS, 1, "query", 5, 5)
    with pytest.raises(ValueError, match="got a mean of 4"):
        attack(replace(observed(world(), LEARNERS), mean_of=4), targets, seed=0)


def test_two_learners_are_too_few_for_a_distribution():
    seen = observed(world(), LEARNERS[:2])
    targets, _ = questions(world(), LEARNERS[:2], 1, "query", 5, 5)
    with pytest.raises(ValueError, match=r"at least three learners, got 2$"):
        PerExampleAlignment(variant="learners", **SMALL)(seen, targets, seed=0)
