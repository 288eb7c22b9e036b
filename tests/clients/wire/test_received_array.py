"""Arrays from the wire: read as they lie, and nothing believed."""

import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from hypothesis.extra.numpy import arrays as numpy_arrays

from metaleak.clients.wire.received_array import view
from metaleak.clients.wire.stacked_arrays import StackedArrays


@settings(deadline=None)
@given(values=numpy_arrays(st.sampled_from([np.float32, np.float64, np.int64, np.uint8]), array_shapes(min_dims=0)))
def test_flowers_own_arrays_come_back_bit_for_bit(values):
    for laid_out in (values, values.copy(order="F")):
        read = view(Array(laid_out))
        assert (read.dtype, read.shape) == (values.dtype, values.shape)
        assert read.tobytes() == values.tobytes()


def test_a_view_copies_nothing_and_cannot_be_written():
    array = Array(np.zeros((512, 1024), "f4"))
    tracemalloc.start()
    read = view(array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 < read.nbytes
    assert not read.flags.writeable


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_stacked_arrays_are_flowers_arrays_to_everybody(rows):
    like = {"w": torch.zeros(3, 2), "b": torch.zeros(())}
    stack = StackedArrays(7, like)
    values = {"w": torch.randn(rows, 3, 2), "b": torch.randn(rows)}
    for row in range(rows):
        stack.append({name: value[row : row + 1] for name, value in values.items()})
    record = stack.record()
    for name, value in values.items():
        assert tuple(record[name].shape) == tuple(value.shape)
        np.testing.assert_array_equal(record[name].numpy(), value.numpy())
        np.testing.assert_array_equal(view(record[name]), value.numpy())


def changed(**what):
    array = Array(np.arange(6, dtype="f4").reshape(2, 3))
    for key, value in what.items():
        setattr(array, key, value)
    return array


def header_of(text):
    body = text.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


WRONG = {
    "another serialization": changed(stype="pickle"),
    "no file": changed(data=b""),
    "no .npy file": changed(data=b"PK\x03\x04" + bytes(200)),
    "cut off": changed(data=changed().data[:-1]),
    "too long": changed(data=changed().data + b"x"),
    "another shape outside": changed(shape=(3, 2)),
    "a thousand times the size": changed(
        shape=(2000, 3), data=header_of("{'descr': '<f4', 'fortran_order': False, 'shape': (2000, 3), }") + bytes(24)
    ),
    "a size that no memory holds": changed(
        shape=(1 << 60, 3), data=header_of("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 60, 3), }")
    ),
    "a huge size": changed(
        shape=(10**15, 3), data=header_of(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**15}, 3), }}")
    ),
    "objects": changed(data=header_of("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }") + bytes(48)),
    "a negative size": changed(data=header_of("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3), }")),
    "code": changed(data=header_of("__import__('os').getcwd()")),
    "deep nesting": changed(data=b"\x93NUMPY\x01\x00" + (3000).to_bytes(2, "little") + b"(" * 3000),
    "a version of the future": changed(data=b"\x93NUMPY\x09\x00" + bytes(200)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_a_plain_array_of_its_size_is_refused_in_one_line_without_memory(case):
    tracemalloc.start()
    with pytest.raises(ValueError, match=r".+") as caught:
        view(WRONG[case])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_leaves_the_size_right(data):
    array = changed()
    damaged = bytearray(array.data)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    array.data = bytes(damaged)
    try:
        read = view(array)
    except ValueError:
        return
    assert read.shape == (2, 3)
    assert read.nbytes < len(damaged)
