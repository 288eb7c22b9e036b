"""A sum over learners whose bits do not depend on the order of arrival, in little memory."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from metaleak.clients.wire.arrays import Arrays

Sums = dict[str, npt.NDArray[np.float64]]
"""A float64 sum of gradients, keyed by name."""

_Vector = npt.NDArray[np.float64]
"""A sum as one vector, with the arrays of all names concatenated."""


class TreeSum:
    """Adds float32 gradients in float64, pairwise along a fixed binary tree over positions.

    Position p belongs to the p-th learner of a round. Two neighbors are added as soon as both are known, so about
    log2(n) partial sums are held when replies arrive nearly in order. If a learner does not answer, its neighbor's
    bits stay unchanged. The result depends neither on how positions are grouped into replies nor on where the
    gradients of adjacent positions are added up (`parts`).
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Vector | None] = {}
        self._places: dict[str, tuple[slice, tuple[int, ...]]] = {}
        self._size = 0
        self._room: dict[int, _Vector] = {}
        self._free: list[_Vector] = []

    def add(self, first: int, count: int, rows: Sequence[int], gradients: Arrays) -> bool:
        """Add the gradients of the positions `first` to `first + count - 1`; return whether all sums are finite.

        `rows` are the ascending offsets of the positions that answered, and `gradients` their gradients, stacked
        `(len(rows), ...)`. If any sum is infinite or NaN, nothing is added.
        """
        values = self._flat(gradients, len(rows))
        answered: list[int | None] = [None] * count
        for row, offset in enumerate(rows):
            answered[offset] = row
        sums: list[tuple[int, int, _Vector | None]] = []
        with np.errstate(invalid="ignore", over="ignore"):
            for level, index in tree_nodes(first, count):
                start = (index << level) - first
                here = answered[start : start + (1 << level)]
                total = None if all(row is None for row in here) else self._vector()
                sums.append((level, index, total))
                if total is None:
                    continue
                self._sum_into(total, values, here, level)
                if not _finite(total):
                    self._free += [made for _, _, made in sums if made is not None]
                    return False
        for level, index, total in sums:
            self._insert(level, index, total)
        return True

    def add_parts(self, first: int, count: int, parts: Arrays) -> bool:
        """Add the `parts` of another sum, over the positions `first` to `first + count - 1`.

        Returns whether all numbers are finite; if they are not, nothing is added.
        """
        if not all(_finite(value) for value in parts.values()):
            return False
        nodes = tree_nodes(first, count)
        values = self._flat(parts, len(nodes))
        for place, (level, index) in enumerate(nodes):
            total = self._vector()
            _copy(total, values, place)
            self._insert(level, index, total)
        return True

    def parts(self) -> list[Sums | None]:
        """Return the partial sums of all positions added so far, in the order of `tree_nodes`.

        The positions must be adjacent. A partial sum is `None` if none of its positions answered.
        """
        return [self._named(self._known[node]) for node in sorted(self._known, key=lambda node: node[1] << node[0])]

    def total(self) -> Sums:
        """Return the sum of all gradients added; empty if there are none."""
        while len(self._known) > 1:
            level, index = min(self._known)
            # The neighbor will never arrive.
            self._insert(level + 1, index // 2, self._known.pop((level, index)))
        return self._named(next(iter(self._known.values()), None)) or {}

    def _flat(self, arrays: Arrays, rows: int) -> list[tuple[slice, np.ndarray]]:
        """Return stacked arrays as rows of numbers, each with its slice of a vector."""
        if arrays and not self._places:
            for name, value in arrays.items():
                shape = value.shape[1:]
                self._places[name] = slice(self._size, self._size + math.prod(shape)), shape
                self._size += math.prod(shape)
        return [
            (place, arrays[name].reshape(rows, place.stop - place.start))
            for name, (place, _) in self._places.items()
            if name in arrays
        ]

    def _named(self, vector: _Vector | None) -> Sums | None:
        if vector is None:
            return None
        return {name: vector[place].reshape(shape) for name, (place, shape) in self._places.items()}

    def _vector(self) -> _Vector:
        return self._free.pop() if self._free else np.empty(self._size)

    def _sum_into(
        self, total: _Vector, values: list[tuple[slice, np.ndarray]], answered: list[int | None], level: int
    ) -> None:
        """Write the sum of 2 ** `level` positions into `total`, adding along the tree."""
        if level == 0:
            if answered[0] is None:
                # -0.0 is the only number that never changes a bit of a sum.
                total.fill(-0.0)
            else:
                _copy(total, values, answered[0])
            return
        # Depth first, reusing the same buffers: the partial sums of many learners at once would not fit into the
        # processor's cache.
        if level not in self._room:
            self._room[level] = np.empty(self._size)
        other, half = self._room[level], 1 << (level - 1)
        self._sum_into(total, values, answered[:half], level - 1)
        self._sum_into(other, values, answered[half:], level - 1)
        total += other

    def _insert(self, level: int, index: int, total: _Vector | None) -> None:
        while (level, index ^ 1) in self._known:
            other = self._known.pop((level, index ^ 1))
            if total is None or other is None:
                total = other if total is None else total
            else:
                total += other
                self._free.append(other)
            level, index = level + 1, index // 2
        self._known[level, index] = total


def _copy(total: _Vector, values: list[tuple[slice, np.ndarray]], row: int) -> None:
    for place, value in values:
        np.copyto(total[place], value[row])


def tree_nodes(first: int, count: int) -> list[tuple[int, int]]:
    """Return the largest tree nodes `(level, index)` that together cover exactly `count` positions from `first`."""
    nodes: list[tuple[int, int]] = []
    end = first + count
    while first < end:
        level = min((first & -first).bit_length() - 1 if first else end.bit_length(), (end - first).bit_length() - 1)
        nodes.append((level, first >> level))
        first += 1 << level
    return nodes


def _finite(numbers: np.ndarray) -> bool:
    """Return whether all numbers are finite; a finite sum already implies it."""
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(numbers.sum())) or bool(np.isfinite(numbers).all())
