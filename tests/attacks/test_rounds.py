"""Attacks over rounds: their gain over one round, their memory, and which rounds count for a target."""

import dataclasses
import gc
import weakref
from collections.abc import Sequence

import pytest
import torch
from membership_questions import observed, questions

from metaleak.attacks import InversionFromNoise, InversionFromTarget
from metaleak.attacks.alignment.alignment import Alignment
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.rounds import AsksOverRounds, ReconstructsOverRounds, Round
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.attacks.shadows.shadow_learners import shadow_learners
from metaleak.attacks.shadows.weighted_rounds import weighted
from metaleak.attacks.span.image_noise_over_rounds import clean_images_over_rounds
from metaleak.attacks.span.span_test import SpanTest
from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.datasets import Digits
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML, first_order_maml
from metaleak.defenses import Noise, RandomSource, RecordLevel, Selection

LEARNERS = 6


@pytest.fixture(scope="module", autouse=True)
def _collected_quickly():
    # What was there before the tests is not looked through in each of their collections.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Rounds(Sequence[Round]):
    """Rounds at the initial parameters, computed when they are accessed; `alive` of them are in memory."""

    def __init__(self, federation, targets, count, answers=lambda learner, number: True, counts=False):
        self.federation, self.targets, self.count, self.answers = federation, targets, count, answers
        self.counts, self.alive, self.most = counts, 0, 0

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        federation, number = self.federation, place + 1
        learners = [one for one in range(LEARNERS) if self.answers(one, number)]
        observation = observed(federation, learners, number)
        if self.counts:
            gc.collect()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(next(iter(observation.gradients.values())), self._gone)
        rows = torch.tensor([learners.index(one) if one in learners else -1 for one in range(LEARNERS)])
        positions = torch.where(rows[self.targets.rows] >= 0, self.targets.positions, -1)
        return Round(number, observation, rows, positions)

    def _gone(self):
        self.alive -= 1


def attacked(count, *defenses, asks="query", hidden=24, **changes):
    federation = Federation(
        seed=3,
        data=Digits(),
        task=TaskShape(ways=2, shots=2, queries=3),
        partition=Partition(learners=LEARNERS, held_out=0.4),
        model=MLP(hidden=(hidden,)),
        rule=MAML(),
        defenses=defenses,
    )
    targets, member = questions(federation, list(range(LEARNERS)), 1, asks, 60, 120)
    return Rounds(federation, targets, count, **changes), targets, member


def auc(scores, member):
    return evaluate(scores.numpy(), member.numpy(), resamples=1).auc.value


ATTACKS = {
    "weighted": (SpanTest(knows_defenses=True), Noise(place="shared", scale=1.0)),
    "noisy": (SpanTest(knows_defenses=True), Noise(place="query", scale=1.0)),
    "clean": (SpanTest(knows_defenses=True, asks="support"), Noise(place="query", scale=1.0)),
    "inversion": (InversionFromTarget(fit=2, iterations=2), Noise(place="shared", scale=1.0)),
    "classical": (InversionFromNoise(iterations=2), Noise(place="shared", scale=1.0)),
    "alignment": (Alignment(samples=20, stand_ins=1, shadows=4), Noise(place="shared", scale=1.0)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_one_round_is_in_memory_however_many_there_are(name):
    attack, defense = ATTACKS[name]
    assert isinstance(attack, AsksOverRounds)
    rounds, targets, _ = attacked(4, defense, asks=attack.asks, counts=True)
    answers = attack.over_rounds(rounds, targets, seed=0)
    gc.collect()
    assert answers.scores.isfinite().all()
    assert (rounds.most, rounds.alive) == (1, 0)


@pytest.mark.parametrize("name", ATTACKS)
def test_tensors_are_created_on_the_device_of_the_rounds(name):
    """The default device is set to one without data: a tensor created there would fail or show in the scores."""
    attack, defense = ATTACKS[name]
    rounds, targets, _ = attacked(2, defense, asks=attack.asks)
    seen = [rounds[place] for place in range(len(rounds))]
    plain = attack.over_rounds(seen, targets, seed=0).scores
    with torch.device("meta"):
        elsewhere = attack.over_rounds(seen, targets, seed=0).scores
    assert attack.on_any_device
    assert torch.equal(elsewhere.nan_to_num(), plain.nan_to_num())


def test_reconstruction_from_all_rounds_needs_the_memory_of_one():
    attack = InversionFromNoise(iterations=2)
    assert isinstance(attack, ReconstructsOverRounds)
    rounds, _, _ = attacked(4)
    made = attack.reconstruct_over_rounds(rounds, seed=0)
    gc.collect()
    assert made.examples.shape == (LEARNERS, 6, 1, 8, 8)
    assert (rounds.most, rounds.alive) == (1, 0)


def test_more_rounds_of_image_noise_find_more_members_of_both_sets():
    one, few, many = (
        auc(ATTACKS["noisy"][0].over_rounds(rounds, targets, seed=0).scores, member)
        for rounds, targets, member in (attacked(count, Noise(place="query", scale=0.7)) for count in (1, 2, 12))
    )
    assert many > few > one
    assert many > one + 0.1
    rounds, targets, member = attacked(3, Noise(place="query", scale=1.0), asks="support")
    assert auc(ATTACKS["clean"][0].over_rounds(rounds, targets, seed=0).scores, member) > 0.99


def test_image_noise_hides_no_member_of_the_other_set_where_the_layer_has_fewer_units_than_images():
    """Row spaces then have no intersection, and tell nothing; the evidence of each round does."""
    attack = SpanTest(knows_defenses=True)
    rounds, targets, member = attacked(3, Noise(place="support", scale=0.3), hidden=8)
    assert auc(clean_images_over_rounds(rounds, targets), member) < 0.65
    assert auc(attack.over_rounds(rounds, targets, seed=0).scores, member) > 0.8


def test_more_rounds_of_shared_noise_find_more_members():
    attack, noise = SpanTest(knows_defenses=True), Noise(place="shared", scale=3.0)
    rounds, targets, member = attacked(8, noise)
    single = attack(rounds[0].observation, targets, 0).scores
    assert auc(attack.over_rounds(rounds, targets, 0).scores, member) > auc(single, member) + 0.05


def test_a_learner_that_never_answered_has_scores_of_0_and_one_that_did_once_does_not():
    attack = SpanTest(knows_defenses=True)
    rounds, targets, member = attacked(
        4, Noise(place="query", scale=0.3), answers=lambda learner, number: learner > 1 or (learner, number) == (1, 2)
    )
    scores = attack.over_rounds(rounds, targets, seed=0).scores
    assert not scores[targets.rows == 0].any()
    once = targets.rows == 1
    assert auc(scores[once], member[once]) > 0.6


def test_a_span_test_without_known_defenses_uses_one_round_only():
    rounds, targets, _ = attacked(2)
    assert SpanTest().reason_against_rounds() == "knows_defenses must be true to combine several rounds"
    with pytest.raises(ValueError, match="knows_defenses must be true"):
        SpanTest().over_rounds(rounds, targets, seed=0)


def test_informative_rounds_have_more_weight():
    generator = torch.Generator().manual_seed(0)
    # One round tells nothing but spreads widely: a sum would drown in it.
    strength, spread = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 20.0, 1.0])

    def drawn(shift, count):
        return shift * strength + spread * torch.randn(count, 3, generator=generator, dtype=torch.float64)

    members, others, asked = drawn(1, 2000), drawn(0, 2000), torch.cat([drawn(1, 500), drawn(0, 500)])
    member = torch.arange(1000) < 500
    found = auc(weighted(asked, members, others, torch.ones(1000)), member)
    assert found > auc(asked.sum(dim=1), member) + 0.2
    assert found == pytest.approx(0.84, abs=0.03)  # of normal distributions sqrt(2) deviations apart
    # A round that cannot hold the target changes nothing, of whichever kind the others are.
    gone = asked.clone()
    gone[:, 1] = torch.nan
    assert auc(weighted(gone, members, others, torch.ones(1000)), member) == pytest.approx(found, abs=0.03)


def test_rounds_without_the_first_layers_gradient_give_no_evidence():
    rounds, targets, member = attacked(2, Selection(names=("head.*",)))
    scores = SpanTest(knows_defenses=True).over_rounds(rounds, targets, seed=0).scores
    assert auc(scores, member) == 0.5


def test_a_target_in_one_round_is_scored_as_if_there_were_no_other():
    """Two rounds share the images that hide a target: their difference is informative, so one weight is negative."""
    generator = torch.Generator().manual_seed(0)

    def drawn(shift, count):
        hidden = 3 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
        own = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        return hidden + own + shift * torch.tensor([2.0, 1.0])

    members, others, asked = drawn(1, 4000), drawn(0, 4000), torch.cat([drawn(1, 2000), drawn(0, 2000)])
    member = torch.arange(4000) < 2000
    both = asked.clone()
    both[::2, 0] = torch.nan
    scores = weighted(both, members, others, torch.ones(4000))
    assert auc(scores[1::2], member[1::2]) > 0.7
    assert auc(scores[::2], member[::2]) == pytest.approx(auc(asked[::2, 1], member[::2]), abs=1e-9)
    assert weighted(torch.full((1, 2), torch.nan), members, others, torch.ones(1)).tolist() == [0]


def test_with_redrawn_sets_the_round_with_the_largest_ratio_dominates():
    ratios = torch.tensor([[9.0, -9.0, -9.0], [-3.0, -3.0, -3.0], [torch.nan, torch.nan, torch.nan]])
    known = torch.eye(3)
    scores = weighted(ratios, known, -known, torch.tensor([0.25, 0.25, 0.25]))
    assert scores[0] > 5
    assert -1 < scores[1] < 0
    assert scores[2] == pytest.approx(0.0, abs=1e-6)
    rarer = weighted(ratios, known, -known, torch.tensor([0.05, 0.5, 0.25]))
    assert 5 < rarer[0] < scores[0]
    assert rarer[1] < scores[1]


def test_shadow_learners_clip_each_example_as_the_learners_do():
    clip = 1e-3
    rounds, _, _ = attacked(1, RecordLevel(clip=clip, noise_multiplier=0).for_readings({"support": 1, "query": 1}))
    observation = rounds[0].observation
    own = OwnExamples.of(observation)
    first_order = dataclasses.replace(observation, rule=first_order_maml())
    shadows = shadow_learners(first_order, own, 3, RandomSource.of(1))
    norms = torch.stack([value.flatten(1).square().sum(1) for value in shadows.gradients.values()]).sum(0).sqrt()
    assert (norms <= clip * (1 + 1e-5)).all()
    assert (norms > 0).all()
