"""Membership by the nearest reconstruction: distances of images and of sequences of tokens."""

import pytest
import torch

from metaleak.attacks.attack import Reconstructions, Targets
from metaleak.attacks.nearest_reconstruction import answers_by_nearest, nearest

ROWS = torch.tensor([1, 0, 1])


def asked(examples):
    return Targets(examples, ROWS, torch.zeros(3, dtype=torch.int64))


def rebuilt(examples):
    return Reconstructions(examples, torch.ones(examples.shape[:2]))


def test_an_image_is_compared_with_all_reconstructions_of_its_learner():
    random = torch.Generator().manual_seed(0)
    made = torch.rand(2, 4, 1, 3, 3, generator=random)
    targets = asked(torch.stack([made[1, 2] + 0.01, made[0, 3], made[0, 0]]))
    found = answers_by_nearest(rebuilt(made), targets)
    by_hand = [
        min(float(((one - image) ** 2).sum() ** 0.5) for one in made[row])
        for row, image in zip(ROWS.tolist(), targets.examples, strict=True)
    ]
    assert (-found.scores).tolist() == pytest.approx(by_hand)
    assert found.scores[:2].tolist() == pytest.approx([-0.03, 0.0])
    assert found.scores[2] < -0.1
    assert nearest(rebuilt(made), targets)[1][:2].tolist() == [2, 3]
    assert found.statistics["distance"].tolist() == (-found.scores).tolist()


def test_tokens_are_compared_by_position_without_padding():
    made = torch.tensor([[[5, 6, 0, 0]], [[5, 7, 8, 0]]])
    targets = asked(torch.tensor([[5, 7, 8, 0], [5, 6, 0, 0], [5, 6, 0, 0]]))
    assert answers_by_nearest(rebuilt(made), targets, padding=0).scores.tolist() == pytest.approx([0, 0, -2 / 3])
    assert answers_by_nearest(rebuilt(made), targets).scores.tolist() == pytest.approx([0, 0, -2 / 4])


def test_reconstructions_that_do_not_fit_or_are_not_finite_are_refused():
    made = torch.zeros(2, 4, 1, 3, 3)
    with pytest.raises(ValueError, match=r"must have the targets' shape \(1, 4, 4\), got \(1, 3, 3\)"):
        answers_by_nearest(rebuilt(made), asked(torch.zeros(3, 1, 4, 4)))
    with pytest.raises(ValueError, match="at least one reconstruction for each learner, got none"):
        answers_by_nearest(rebuilt(made[:, :0]), asked(torch.zeros(3, 1, 3, 3)))
    with pytest.raises(ValueError, match="finite"):
        answers_by_nearest(rebuilt(made * torch.nan), asked(torch.zeros(3, 1, 3, 3)))


def test_no_targets_give_no_scores():
    none = torch.empty(0, dtype=torch.int64)
    targets = Targets(torch.zeros(0, 1, 3, 3), none, none)
    assert len(answers_by_nearest(rebuilt(torch.zeros(2, 4, 1, 3, 3)), targets).scores) == 0
