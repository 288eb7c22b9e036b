"""Shadow learners of a federation that shares a part of the model have the defenses of real learners."""

from dataclasses import replace

import pytest
import torch
from membership_questions import observed
from small_federation import federation

from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.attacks.shadows.shadow_learners import shadow_learners
from metaleak.clients import Partition
from metaleak.clients.episode import Episode
from metaleak.clients.rules import ReleasedMeans, first_order_maml
from metaleak.clients.sharing import without_clip
from metaleak.defenses import AdaptiveClip, GaussianMechanism, RandomSource, RecordLevel

CLIP = 1e-3
"""Below the norm of every gradient."""

BODY = ("layer1.weight", "layer1.bias")


def of(defense):
    """Return the observation of two learners that share only the body, and two shadows of them."""
    some = federation(
        rule=first_order_maml(), shares=BODY, partition=Partition(learners=4, held_out=0.4), defenses=(defense,)
    )
    observation = observed(some, [0, 1])
    observation = replace(observation, gradients=without_clip(observation.gradients))
    return observation, shadow_learners(observation, OwnExamples.of(observation), 2, RandomSource.of(0))


@pytest.mark.parametrize("adapt", [None, AdaptiveClip()], ids=["fixed", "adaptive"])
def test_a_shadows_gradient_is_clipped_like_a_real_learners(adapt):
    observation, shadows = of(GaussianMechanism(clip=CLIP, noise_multiplier=0.0, adapt=adapt))
    for gradients in (observation.gradients, shadows.gradients):
        assert tuple(gradients) == BODY
        norms = torch.cat([value.flatten(1) for value in gradients.values()], dim=1).norm(dim=1)
        torch.testing.assert_close(norms, torch.full((2,), CLIP))


@pytest.mark.parametrize("adapt", [None, AdaptiveClip()], ids=["fixed", "adaptive"])
def test_examples_of_a_shadow_are_clipped_in_the_shared_part_only(adapt):
    defense = RecordLevel(clip=CLIP, noise_multiplier=0.0, adapt=adapt).for_readings({"support": 1, "query": 1})
    observation, shadows = of(defense)
    assert tuple(shadows.gradients) == tuple(shadows.undefended) == BODY
    labels = [torch.arange(3).repeat_interleave(each) for each in (observation.shots, observation.queries)]
    episode = Episode(shadows.support[0].flatten(0, 1), labels[0], shadows.query[0].flatten(0, 1), labels[1])
    means = ReleasedMeans(defense, lambda reading, step: RandomSource.of(reading, step), BODY)
    expected, _ = observation.rule.released_meta_gradient(observation.model, observation.parameters, episode, means)
    for name, value in shadows.gradients.items():
        torch.testing.assert_close(value[0], expected[name])
