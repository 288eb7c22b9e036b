"""The sum over learners: right, the same bits in any order of arrival, and small."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaleak.clients.wire.received_array import view
from metaleak.clients.wire.summed_arrays import SummedArrays
from metaleak.clients.wire.tree_sum import TreeSum, tree_nodes


def gradients(count, seed=0):
    generator = np.random.default_rng(seed)
    # Sizes that differ wildly, so that the order of additions shows in the bits.
    scale = 10.0 ** generator.integers(-6, 6, size=(count, 1, 1))
    return {"w": (scale * generator.normal(size=(count, 3, 2))).astype(np.float32)}


def one_by_one(rows, everything):
    total = TreeSum()
    for place in range(len(everything["w"])):
        answered = place in rows
        total.add(place, 1, [0] if answered else [], {"w": everything["w"][place : place + 1]} if answered else {})
    return total.total()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 40))
def test_neither_the_order_nor_the_grouping_of_replies_changes_a_bit(data, count):
    everything = gradients(count, seed=count)
    rows = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    bounds = sorted({0, count, *data.draw(st.sets(st.integers(0, count)))})
    shares = data.draw(st.permutations(list(pairwise(bounds))))
    total = TreeSum()
    for first, end in shares:
        here = [row for row in range(first, end) if row in rows]
        assert total.add(first, end - first, [row - first for row in here], {"w": everything["w"][here]})
    assert total.total()["w"].tobytes() == one_by_one(rows, everything)["w"].tobytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 40))
def test_partial_sums_made_elsewhere_change_no_bit(data, count):
    everything = gradients(count, seed=count)
    # One learner of ten is not finite; who adds leaves it out.
    bad = set(range(3, count, 10))
    everything["w"][sorted(bad), 0, 0] = np.nan
    rows = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    bounds = sorted({0, count, *data.draw(st.sets(st.integers(0, count)))})
    total = TreeSum()
    for first, end in data.draw(st.permutations(list(pairwise(bounds)))):
        summed = SummedArrays(first, end - first, {"w": torch.empty(3, 2)})
        chunk = data.draw(st.integers(1, 9))
        for start in range(first, end, chunk):
            here = [row for row in range(start, min(start + chunk, end)) if row in rows]
            offsets = [row - first for row in here]
            left_out = summed.append(offsets, {"w": torch.from_numpy(everything["w"][here])})
            assert set(left_out) == {row - first for row in here if row in bad}
        parts = {name: view(array) for name, array in summed.record().items()}
        assert len(parts["w"]) == len(tree_nodes(first, end - first))
        assert total.add_parts(first, end - first, parts)
    if rows - bad:
        assert total.total()["w"].tobytes() == one_by_one(rows - bad, everything)["w"].tobytes()


def test_partial_sums_that_are_not_finite_are_not_added():
    total = TreeSum()
    assert not total.add_parts(0, 2, {"w": np.array([[np.inf]])})
    assert total.total() == {}


def test_it_is_the_sum_in_double_precision():
    everything = gradients(37)
    expected = everything["w"].astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(one_by_one(range(37), everything)["w"], expected, rtol=1e-12)


def test_a_sum_of_negative_zeros_keeps_its_sign():
    total = TreeSum()
    total.add(0, 4, [1], {"w": np.full((1, 2), -0.0, dtype=np.float32)})
    assert np.signbit(total.total()["w"]).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_added(wrong):
    total = TreeSum()
    assert total.add(0, 2, [0, 1], gradients(2))
    spoiled = gradients(2, seed=1)
    spoiled["w"][1, 0, 0] = wrong
    assert not total.add(2, 2, [0, 1], spoiled)
    np.testing.assert_allclose(total.total()["w"], gradients(2)["w"].sum(axis=0), rtol=1e-6)


def test_infinities_of_both_signs_do_not_cancel():
    opposite = gradients(2)
    opposite["w"][:, 0, 0] = np.inf, -np.inf
    assert not TreeSum().add(0, 2, [0, 1], opposite)


def test_one_straggler_holds_back_only_a_handful_of_partial_sums():
    total, most = TreeSum(), 0
    for share in range(1, 256):
        total.add(16 * share, 16, range(16), gradients(16, seed=share))
        most = max(most, sum(held is not None for held in total._known.values()))
    assert most <= 16, "twice the logarithm of the number of shares"


def test_nothing_added_is_no_sum():
    total = TreeSum()
    total.add(0, 5, [], {})
    assert total.total() == {}
    assert TreeSum().total() == {}


def test_a_partial_sum_does_not_keep_the_reply_in_memory():
    reply = gradients(3)
    total = TreeSum()
    total.add(0, 3, [0, 1, 2], reply)
    assert not any(np.shares_memory(held, reply["w"]) for held in total._known.values())
    assert not np.shares_memory(total.total()["w"], reply["w"])
