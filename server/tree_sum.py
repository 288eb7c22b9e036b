"""A sum over learners that has the same bits whatever the order of arrival, in little memory."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from metaleak.server.record import Arrays

_Sum = dict[str, npt.NDArray[np.float64]] | None


class TreeSum:
    """Adds float32 gradients in float64, pairwise along a fixed binary tree over positions.

    Position p is that of the p-th learner of a round. Two neighbours are added as soon as both are known, so about
    log2(n) partial sums are held when answers come nearly in order. A learner that does not answer leaves its
    neighbour's bits as they are; how positions were grouped into replies does not matter either.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Sum] = {}

    def add(self, first: int, count: int, rows: Sequence[int], gradients: Arrays) -> bool:
        """Add what the positions `first` to `first + count - 1` sent, and return whether all of it is finite.

        `rows` are the ascending offsets of those that answered, `gradients` theirs, stacked `(len(rows), ...)`. If
        anything is infinite or not a number, nothing is added.
        """
        with np.errstate(invalid="ignore"):
            sums = _halved(first, count, _padded(count, rows, gradients))
        if not all(_finite(total) for _, _, total in sums):
            return False
        for level, index, total in sums:
            self._insert(level, index, total)
        return True

    def total(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the sum of everything added; empty when nothing was."""
        while len(self._known) > 1:
            level, index = min(self._known)
            # The neighbour will never come.
            self._insert(level + 1, index // 2, self._known.pop((level, index)))
        return next(iter(self._known.values()), None) or {}

    @property
    def held(self) -> int:
        """How many partial sums are held."""
        return sum(total is not None for total in self._known.values())

    def _insert(self, level: int, index: int, total: _Sum) -> None:
        while (level, index ^ 1) in self._known:
            total = _added(self._known.pop((level, index ^ 1)), total)
            level, index = level + 1, index // 2
        self._known[level, index] = total


def _padded(count: int, rows: Sequence[int], gradients: Arrays) -> Arrays | None:
    """Return one row a position; who did not answer has -0.0, the one number that changes no bit of a sum."""
    if not rows:
        return None
    if len(rows) == count:
        return gradients
    padded = {}
    for name, value in gradients.items():
        padded[name] = np.full((count, *value.shape[1:]), -0.0, dtype=value.dtype)
        padded[name][list(rows)] = value
    return padded


def _halved(first: int, count: int, values: Arrays | None) -> list[tuple[int, int, _Sum]]:
    """Return the nodes `(level, index, sum)` of the tree that the positions from `first` on fill completely."""
    nodes: list[tuple[int, int, _Sum]] = []
    level, low, high = 0, first, first + count
    while low < high:
        if low % 2 or high - low == 1:
            nodes.append((level, low, _row(values, 0)))
            values, low = _cut(values, slice(1, None)), low + 1
        if low < high and high % 2:
            nodes.append((level, high - 1, _row(values, -1)))
            values, high = _cut(values, slice(None, -1)), high - 1
        if low < high:
            values = values and {
                name: np.add(value[0::2], value[1::2], dtype=np.float64) for name, value in values.items()
            }
            level, low, high = level + 1, low // 2, high // 2
    return nodes


def _row(values: Arrays | None, row: int) -> _Sum:
    # A copy: a view would keep the whole reply in memory.
    return values and {name: value[row].astype(np.float64) for name, value in values.items()}


def _cut(values: Arrays | None, part: slice) -> Arrays | None:
    return values and {name: value[part] for name, value in values.items()}


def _added(left: _Sum, right: _Sum) -> _Sum:
    if left is None or right is None:
        return right if left is None else left
    return {name: value + right[name] for name, value in left.items()}


def _finite(total: _Sum) -> bool:
    return total is None or all(bool(np.isfinite(value).all()) for value in total.values())
