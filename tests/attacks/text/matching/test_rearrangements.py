import pytest
import torch

from metaleak.attacks.text.matching.rearrangements import rearrangements, shuffles


@pytest.mark.parametrize("make", [rearrangements, shuffles])
def test_orders_are_permutations_that_leave_the_ends_in_place(make):
    orders = make(1, 6, 8, 50, torch.Generator().manual_seed(0))
    assert torch.equal(orders.sort(dim=1).values, torch.arange(8).expand(50, -1))
    assert torch.equal(orders[0], torch.arange(8))
    assert (orders[:, [0, 6, 7]] == torch.tensor([0, 6, 7])).all()
    assert len(torch.unique(orders, dim=0)) > 10
    assert torch.equal(make(1, 2, 3, 5, torch.Generator()), torch.arange(3).expand(5, -1))
