"""The meta-learner: samples by seed, averages by learner, refuses what does not fit."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message
from local_grid import LocalGrid

from metaleak.clients import Federation, Partition, TaskShape, client_app
from metaleak.clients.datasets import Digits
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.server import MetaLearner, OuterOptimiser, RoundFailed

LEARNERS = 20


@pytest.fixture(scope="module")
def federation():
    return Federation(
        seed=3,
        data=Digits(),
        task=TaskShape(ways=3),
        partition=Partition(learners=LEARNERS),
        model=MLP(hidden=(8,)),
        rule=MAML(),
    )


def arrays(parameters):
    return ArrayRecord({name: Array(value.numpy()) for name, value in parameters.items()})


def trained(federation, *, nodes=2, rounds=3, spoil=None, reports=None, **settings):
    grid = LocalGrid(client_app(federation), nodes=nodes, spoil=spoil)
    on_round = reports.append if reports is not None else None
    strategy = MetaLearner(LEARNERS, seed=3, on_round=on_round, **{"chunk": 4, **settings})
    result = strategy.start(grid, arrays(federation.initial_parameters()), num_rounds=rounds)
    return {name: array.numpy() for name, array in result.arrays.items()}


def same(left, right):
    return all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_sgd_is_the_mean_of_the_learners_own_gradients(federation):
    start = federation.initial_parameters()
    result = trained(federation, rounds=1, optimiser=OuterOptimiser(name="sgd", rate=0.5))
    mine = [federation.learner(number).meta_gradient(start, 1)[0] for number in range(LEARNERS)]
    for name, value in start.items():
        mean = torch.stack([gradient[name] for gradient in mine]).mean(0)
        np.testing.assert_allclose(result[name], (value - 0.5 * mean).numpy(), rtol=1e-5, atol=1e-7)


def test_the_numbers_do_not_depend_on_how_many_nodes_there_are(federation):
    alone = trained(federation, nodes=1)
    assert same(alone, trained(federation, nodes=2))
    assert same(alone, trained(federation, nodes=7))


def test_adam_keeps_its_state_across_rounds(federation):
    """Three Adam steps of torch itself on the recorded mean gradients give the same parameters."""
    reports = []
    trained(federation, reports=reports, optimiser=OuterOptimiser(name="adam", rate=0.01))
    start = federation.initial_parameters()
    leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    for report in reports:
        current = {name: value.detach().clone() for name, value in leaves.items()}
        gradients = [federation.learner(n).meta_gradient(current, report.round)[0] for n in range(LEARNERS)]
        for name, leaf in leaves.items():
            leaf.grad = torch.stack([gradient[name] for gradient in gradients]).mean(0)
        adam.step()
        # Adam divides by the gradient's own size, so where a gradient is almost zero its rounding decides.
        close = [torch.isclose(report.parameters[n], leaves[n], atol=1e-4).float().mean() for n in leaves]
        assert min(close) > 0.99


def test_sampling_depends_on_seed_and_round_alone():
    strategy = MetaLearner(100, fraction=0.1, seed=5)
    assert strategy.sample(1) == MetaLearner(100, fraction=0.1, seed=5).sample(1)
    assert len(set(strategy.sample(1))) == 10
    assert strategy.sample(1) != strategy.sample(2)
    assert strategy.sample(1) != MetaLearner(100, fraction=0.1, seed=6).sample(1)
    assert MetaLearner(100, fraction=0.001, seed=5).sample(1)


def spoiled(change):
    """Return a spoiler of the replies of node 10 000."""

    def spoil(reply: Message) -> Message:
        if reply.metadata.src_node_id == 10_000:
            change(reply)
        return reply

    return spoil


def not_finite(reply):
    reply.content["arrays"]["head.bias"] = Array(np.full(reply.content["arrays"]["head.bias"].shape, np.nan, "f4"))


def wrong_shape(reply):
    reply.content["arrays"]["head.bias"] = Array(np.zeros((2, 2), "f4"))


def missing_array(reply):
    del reply.content["arrays"]["head.bias"]


def extra_array(reply):
    reply.content["arrays"]["more"] = Array(np.zeros((2, 2), "f4"))


@pytest.mark.parametrize("change", [not_finite, wrong_shape, missing_array, extra_array])
def test_a_reply_that_does_not_fit_is_refused_and_counted(federation, change):
    reports = []
    result = trained(federation, rounds=2, spoil=spoiled(change), reports=reports)
    assert [report.refused for report in reports] == [8, 8], "node 10 000 hosts 2 of 5 chunks of 4"
    assert all(np.isfinite(value).all() for value in result.values())


def test_a_round_without_any_answer_fails_with_the_reason(federation):
    strategy = MetaLearner(LEARNERS + 1, seed=3, chunk=100)
    grid = LocalGrid(client_app(federation), nodes=1)
    initial = arrays(federation.initial_parameters())
    with pytest.raises(RoundFailed, match=r"round 1: no learner answered \(.*learner 20 is not one of"):
        strategy.start(grid, initial, num_rounds=1)


@pytest.mark.parametrize("wrong", [{"learners": 0}, {"learners": 5, "fraction": 0}, {"learners": 5, "chunk": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        MetaLearner(**wrong)


def test_the_rate_halves_in_its_half_life():
    leaf = torch.zeros(1, requires_grad=True)
    steps = OuterOptimiser(name="sgd", rate=1.0, half_life=2).over([leaf])
    positions = []
    for _ in range(5):
        leaf.grad = -torch.ones(1)
        steps.step()
        positions.append(leaf.item())
    moves = np.diff([0.0, *positions])
    np.testing.assert_allclose(moves, [0.5 ** (step / 2) for step in range(5)], rtol=1e-5)
