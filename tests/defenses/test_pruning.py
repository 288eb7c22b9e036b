"""Pruning: the largest stay, and the rest costs nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from metaleak.defenses import Costed, Pruning, RandomSource


def source():
    return RandomSource.of(0)


def test_the_largest_magnitudes_of_all_tensors_together_stay():
    tensors = {"a": torch.tensor([[1.0, -5.0], [0.1, 2.0]]), "b": torch.tensor([-4.0, 0.5])}
    sent = Pruning(keep=0.5)(tensors, source())
    assert sent["a"].tolist() == [[0.0, -5.0], [0.0, 2.0]]
    assert sent["b"].tolist() == [-4.0, 0.0]


def test_of_equal_magnitudes_the_first_stay():
    sent = Pruning(keep=0.4)({"a": torch.ones(50), "b": -torch.ones(50)}, source())
    assert sent["a"].tolist() == [1.0] * 40 + [0.0] * 10
    assert not sent["b"].any()


@given(
    entries=st.lists(st.integers(-1000, 1000), min_size=1, max_size=40, unique_by=abs),
    keep=st.floats(0.01, 1.0),
)
def test_the_part_that_stays_is_the_one_asked_for(entries, keep):
    value = torch.tensor(entries, dtype=torch.float64)
    sent = Pruning(keep=keep)({"w": value}, source())["w"]
    count = math.ceil(keep * len(entries) - 1e-9)
    largest = np.argsort(-np.abs(entries), kind="stable")[:count]
    expected = torch.zeros_like(value)
    expected[largest.copy()] = value[largest.copy()]
    assert torch.equal(sent, expected)


@pytest.mark.parametrize(("keep", "count"), [(1.0, 100), (0.07, 7), (0.29, 29), (0.001, 1)])
def test_the_count_is_rounded_up_but_not_by_the_arithmetic(keep, count):
    sent = Pruning(keep=keep)({"w": torch.arange(1.0, 101.0)}, source())["w"]
    assert int((sent != 0).sum()) == count


@pytest.mark.parametrize(("keep", "size"), [(0.01, 1000), (0.2, 1000), (1.0, 1000), (0.5, 3)])
def test_a_sender_can_really_do_with_so_many_bytes(keep, size):
    """Written as a string of bits and read again: places as indices or as a bitmap, values as float32."""
    pruning = Pruning(keep=keep)
    value = torch.randn(size, generator=source().generator)
    sent = pruning({"w": value}, source())["w"].numpy()
    there = np.flatnonzero(sent)
    width = max(1, math.ceil(math.log2(size)))
    numbers = "".join(format(int(bits), "032b") for bits in sent[there].view(np.uint32))
    indices = "".join(format(int(place), f"0{width}b") for place in there)
    bitmap = "".join("1" if entry else "0" for entry in sent)
    written = {"indices": indices + numbers, "bitmap": bitmap + numbers, "all": "0" * 32 * size}
    shortest = min(-(-len(bits) // 8) for bits in written.values())
    assert isinstance(pruning, Costed)
    assert pruning.bytes_sent({"w": (size,)}) == shortest


def test_what_it_costs_in_numbers():
    shapes = {"w": (20, 40), "b": (200,)}
    assert Pruning(keep=0.01).bytes_sent(shapes) == 53  # 10 values of 32 bits with indices of 10 bits
    assert Pruning(keep=0.5).bytes_sent(shapes) == 2125  # 500 values and a bitmap of 1000 bits
    assert Pruning(keep=1.0).bytes_sent(shapes) == 4000


@pytest.mark.parametrize("wrong", [{}, {"keep": 0}, {"keep": 1.1}, {"keep": 0.5, "place": "inner"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Pruning(**wrong)
