"""Outer steps are those of torch's optimizers, bit for bit, and go on where they were."""

import numpy as np
import pytest
import torch

from metaleak.server.learning.optimizer import OuterOptimizer


@pytest.mark.parametrize(
    ("settings", "optimizer", "gamma"),
    [
        ({"name": "adam", "rate": 0.01}, lambda leaves: torch.optim.Adam(leaves, lr=0.01), 1.0),
        ({"name": "sgd", "rate": 0.1}, lambda leaves: torch.optim.SGD(leaves, lr=0.1), 1.0),
        (
            {"name": "sgd", "rate": 0.1, "momentum": 0.9, "half_life": 2.0},
            lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9),
            0.5**0.5,
        ),
    ],
)
def test_steps_are_those_of_torch_also_when_taken_up_again(settings, optimizer, gamma):
    begun = {"w": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(3)}
    leaves = {name: value.clone().requires_grad_() for name, value in begun.items()}
    theirs = optimizer(list(leaves.values()))
    schedule = torch.optim.lr_scheduler.ExponentialLR(theirs, gamma)
    ours = OuterOptimizer(**settings).over(begun)
    for number in range(6):
        gradient = {name: np.random.default_rng(number).normal(size=value.shape) for name, value in begun.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.from_numpy(gradient[name]).float()
        theirs.step()
        schedule.step()
        ours.step(gradient)
        assert all(torch.equal(ours.parameters[name], leaf) for name, leaf in leaves.items())
        again = OuterOptimizer(**settings).over(ours.parameters)
        again.restore(ours.state())
        ours = again


def test_the_state_of_another_optimizer_is_refused():
    parameters = {"w": torch.ones(2)}
    adam, sgd = (OuterOptimizer(name=name).over(parameters) for name in ("adam", "sgd"))
    adam.step({"w": np.ones(2)})
    with pytest.raises(ValueError, match="does not fit"):
        sgd.restore(adam.state())
    with pytest.raises(ValueError, match="does not fit"):
        adam.restore({"rate": torch.tensor(0.1)})
