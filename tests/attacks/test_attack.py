"""Targets, grouped by learner."""

import torch

from metaleak.attacks.attack import Targets


def test_targets_are_grouped_by_learner():
    rows = torch.tensor([3, 0, 3, 1])
    targets = Targets(torch.rand(4, 1, 2, 2), rows, torch.zeros(4, dtype=torch.int64))
    assert [(row, places.tolist()) for row, places in targets.by_learner()] == [(0, [1]), (1, [3]), (3, [0, 2])]
    assert targets.places_of(2).tolist() == []
