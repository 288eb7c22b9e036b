"""CIFAR-10 from the binary batches, as published or packed."""

import gzip

import numpy as np
import pytest

from metaleak.clients.datasets import CIFAR10


def batch(label=3):
    rows = np.zeros((10_000, 3073), np.uint8)
    rows[:, 0] = label
    rows[0, 1:] = np.arange(3072) % 251
    return rows.tobytes()


def test_batches_are_read_packed_or_not_in_the_order_given(tmp_path):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "test_batch.bin.gz").write_bytes(gzip.compress(batch(9), 1))
    (tmp_path / "cifar10" / "data_batch_2.bin").write_bytes(batch(4))
    found = CIFAR10(data_dir=tmp_path, batches=("test_batch", "data_batch_2")).load()
    assert found.examples.shape == (20_000, 3, 32, 32)
    assert found.labels[[0, 9999, 10_000]].tolist() == [9, 9, 4]
    # A channel after the other, row by row.
    assert found.examples[0, 1, 0, :3].tolist() == [(1024 + place) % 251 for place in range(3)]
    assert len(found.classes) == 10


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("test_batch.bin", batch()[:-1], "does not hold 10000 rows of 3073 bytes"),
        ("test_batch.bin", batch() + b"x", "does not hold 10000 rows"),
        ("test_batch.bin", batch(10), "it has the label 10"),
        ("test_batch.bin.gz", gzip.compress(batch(), 1)[:-20], "is damaged"),
        ("test_batch.bin.gz", b"no archive", "is damaged"),
    ],
    ids=["too short", "too long", "label outside", "truncated archive", "no archive"],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem) as caught:
        CIFAR10(data_dir=tmp_path).load()
    assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"lacks test_batch.bin.gz \(it is not fetched\)"):
        CIFAR10(data_dir=tmp_path).load()
