"""A sum over learners that has the same bits whatever the order of arrival, in little memory."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from metaleak.clients.wire.arrays import Arrays

Sums = dict[str, npt.NDArray[np.float64]]
"""A sum of gradients by name, float64."""

_Sum = Sums | None


class TreeSum:
    """Adds float32 gradients in float64, pairwise along a fixed binary tree over positions.

    Position p is that of the p-th learner of a round. Two neighbors are added as soon as both are known, so about
    log2(n) partial sums are held when answers come nearly in order. A learner that does not answer leaves its
    neighbor's bits as they are; how positions were grouped into replies does not matter either, nor who adds up the
    gradients of adjacent positions (`parts`).
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Sum] = {}
        self._room: dict[int, Sums] = {}

    def add(self, first: int, count: int, rows: Sequence[int], gradients: Arrays) -> bool:
        """Add what the positions `first` to `first + count - 1` sent, and return whether all of it is finite.

        `rows` are the ascending offsets of those that answered, `gradients` theirs, stacked `(len(rows), ...)`. If
        anything is infinite or not a number, nothing is added.
        """
        values = _padded(count, rows, gradients)
        with np.errstate(invalid="ignore"):
            sums = [
                (level, index, None if values is None else self._summed(values, (index << level) - first, level))
                for level, index in tree_nodes(first, count)
            ]
        if not all(_finite(total) for _, _, total in sums):
            return False
        for level, index, total in sums:
            self._insert(level, index, total)
        return True

    def add_parts(self, first: int, count: int, parts: Arrays) -> bool:
        """Add what another's `parts` hold of the positions `first` to `first + count - 1`, and return whether all is
        finite; if it is not, nothing is added.
        """
        if not _finite(parts):
            return False
        for place, (level, index) in enumerate(tree_nodes(first, count)):
            self._insert(level, index, {name: value[place] for name, value in parts.items()})
        return True

    def parts(self) -> list[_Sum]:
        """Return the partial sums of all positions added, which are adjacent, in the order of `tree_nodes`.

        It is `None` where nobody of its positions answered.
        """
        return [self._known[node] for node in sorted(self._known, key=lambda node: node[1] << node[0])]

    def total(self) -> Sums:
        """Return the sum of everything added; empty when nothing was."""
        while len(self._known) > 1:
            level, index = min(self._known)
            # The neighbor will never come.
            self._insert(level + 1, index // 2, self._known.pop((level, index)))
        return next(iter(self._known.values()), None) or {}

    def _summed(self, values: Arrays, start: int, level: int) -> Sums:
        """Return the sum of the 2 ** `level` rows from `start` on, along the tree."""
        total = {name: np.empty(value.shape[1:]) for name, value in values.items()}
        self._sum_into(total, values, start, level)
        return total

    def _sum_into(self, total: Sums, values: Arrays, start: int, level: int) -> None:
        if level == 0:
            for name, value in values.items():
                total[name][...] = value[start]
            return
        half = 1 << (level - 1)
        if level == 1:
            for name, value in values.items():
                np.add(value[start], value[start + 1], out=total[name], dtype=np.float64)
            return
        # Depth first and in the same room again and again: the partial sums of many learners at once would not fit
        # into the processor's cache.
        if level not in self._room:
            self._room[level] = {name: np.empty_like(value) for name, value in total.items()}
        other = self._room[level]
        self._sum_into(total, values, start, level - 1)
        self._sum_into(other, values, start + half, level - 1)
        for name, value in total.items():
            value += other[name]

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


def tree_nodes(first: int, count: int) -> list[tuple[int, int]]:
    """Return the largest nodes `(level, index)` of the tree that the `count` positions from `first` on fill."""
    nodes: list[tuple[int, int]] = []
    end = first + count
    while first < end:
        level = min((first & -first).bit_length() - 1 if first else end.bit_length(), (end - first).bit_length() - 1)
        nodes.append((level, first >> level))
        first += 1 << level
    return nodes


def _added(left: _Sum, right: _Sum) -> _Sum:
    if left is None or right is None:
        return right if left is None else left
    return {name: value + right[name] for name, value in left.items()}


def _finite(total: Arrays | None) -> bool:
    return total is None or all(bool(np.isfinite(value).all()) for value in total.values())
