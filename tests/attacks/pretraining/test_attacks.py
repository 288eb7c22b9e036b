"""Attacks on answers of a known distribution: they detect an effect of membership, and score chance without one."""

import pytest
import torch
from scipy.stats import rankdata

from metaleak.attacks.pretraining.adapted_lira import AdaptedLiRA
from metaleak.attacks.pretraining.evidence import PretrainingAttack, ShadowAnswers, clipped_log_odds
from metaleak.attacks.pretraining.gaussian_ratio import GaussianRatio, fitted, gaussian_ratio
from metaleak.attacks.pretraining.global_classifier import GlobalClassifier
from metaleak.attacks.pretraining.relative_confidence import RelativeConfidence
from metaleak.attacks.pretraining.tmi import Metaclassifiers
from metaleak.attacks.pretraining.white_box import WhiteBoxLiRA
from metaleak.attacks.work import Work

ATTACKS = [
    GaussianRatio(),
    Metaclassifiers(),
    AdaptedLiRA(),
    AdaptedLiRA(own_covariance=False),
    RelativeConfidence(),
    GlobalClassifier(),
]


def answered(models, effect, seed, queries=1, points=300, classes=3):
    """Answers whose log odds have a mean by point, `effect` on members' first class, and noise."""
    random = torch.Generator().manual_seed(seed)
    member = torch.rand(models, points, generator=random) < 0.5
    logits = torch.randn(points, classes, generator=random) + 0.2 * torch.randn(
        models, queries, points, classes, generator=random
    )
    # The first class is the likeliest, so that attacks on its confidence see the effect.
    logits[..., 0] += 2 + effect * member[:, None]
    return logits.softmax(-1).double().permute(0, 2, 1, 3), member


def auc(scores, member):
    ranks = torch.from_numpy(rankdata(scores.numpy()))
    inside = int(member.sum())
    return float(ranks[member].sum() - inside * (inside + 1) / 2) / (inside * (len(member) - inside))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: type(one).__name__ + str(one.model_dump())[:25])
def test_an_effect_of_membership_on_answers_is_detected(attack):
    assert isinstance(attack, PretrainingAttack)
    probabilities, member = answered(17, 1.0, 1)
    shadows = ShadowAnswers(probabilities[1:], member[1:])
    scores = attack(shadows, probabilities[0], Work(3))
    assert auc(scores, member[0]) > 0.65
    assert torch.equal(scores, attack(shadows, probabilities[0], Work(3)))
    nothing, truth = answered(17, 0.0, 2)
    assert abs(auc(attack(ShadowAnswers(nothing[1:], truth[1:]), nothing[0], Work(3)), truth[0]) - 0.5) < 0.12


def test_the_ratio_is_that_of_two_gaussian_densities():
    probabilities, member = answered(40, 1.0, 5, points=4)
    features = clipped_log_odds(probabilities)[:, :, 0]
    gaussians, both = fitted(features[1:], member[1:])
    found = gaussian_ratio(features[1:], member[1:], features[0], shrunken=False)
    assert both.all()
    for point in range(4):
        inside, outside = (
            torch.distributions.MultivariateNormal(mean[point], gaussians.covariance).log_prob(features[0, point])
            for mean in (gaussians.inside, gaussians.outside)
        )
        assert float(found[point]) == pytest.approx(float(inside - outside), rel=1e-5, abs=1e-8)


def test_shrinking_helps_where_shadows_are_few():
    gains = []
    for seed in range(8):
        probabilities, member = answered(7, 0.25, seed)
        scores = [
            GaussianRatio(shrunken=one)(ShadowAnswers(probabilities[1:], member[1:]), probabilities[0], Work())
            for one in (True, False)
        ]
        gains.append(auc(scores[0], member[0]) - auc(scores[1], member[0]))
    assert sum(gains) / len(gains) > 0.01


def test_a_point_without_shadows_of_one_kind_has_no_score_and_too_few_shadows_are_refused():
    probabilities, member = answered(9, 1.0, 1)
    member[:, 0] = True
    shadows = ShadowAnswers(probabilities[1:], member[1:])
    for attack in (GaussianRatio(), AdaptedLiRA(), GlobalClassifier()):
        assert float(attack(shadows, probabilities[0], Work())[0]) == 0
    with pytest.raises(ValueError, match="at least 3 shadow models are needed, got 2"):
        GaussianRatio()(ShadowAnswers(probabilities[:2], member[:2]), probabilities[0], Work())
    with pytest.raises(ValueError, match="every point is in the pretraining set of all shadow models or of none"):
        GaussianRatio()(ShadowAnswers(probabilities, torch.ones_like(member)), probabilities[0], Work())


def test_several_queries_per_point_help_and_certain_answers_have_finite_scores():
    probabilities, member = answered(17, 0.5, 4, queries=8)
    shadows, victim = ShadowAnswers(probabilities[1:], member[1:]), probabilities[0]
    one = auc(GaussianRatio()(shadows, victim, Work()), member[0])
    for queries in ("mean", "joint"):
        assert auc(GaussianRatio(queries=queries)(shadows, victim, Work()), member[0]) > one
    certain = torch.zeros_like(probabilities)
    certain[..., 0] = 1
    for attack in ATTACKS:
        assert attack(ShadowAnswers(certain[1:], member[1:]), certain[0], Work()).isfinite().all()


def test_the_ceiling_is_given_the_pretrained_models_answers():
    probabilities, member = answered(17, 1.0, 1)
    scores = WhiteBoxLiRA()(ShadowAnswers(probabilities[1:, ..., :1], member[1:]), probabilities[0, ..., :1], Work())
    assert auc(scores, member[0]) > 0.75
    assert WhiteBoxLiRA().sees_pretrained
