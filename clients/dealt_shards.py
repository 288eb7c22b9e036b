"""Learners' shards, built only when they are used, because a process needs only some of a million learners."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

_KEPT = 16384
"""The number of shards that are kept after they have been built."""


@dataclass(frozen=True, eq=False)
class ShardIndices:
    """The data of one learner: its `classes`, ascending, and the indices of its examples.

    `examples (classes, examples_per_class)` is int64; row i belongs to `classes[i]`.
    """

    classes: tuple[int, ...]
    examples: Tensor


Dealt = Callable[[int], tuple[Sequence[int], Sequence[int]]]
"""Returns a learner's classes, ascending, and the position in each class's pool where the learner's images start."""


class DealtShards(Sequence[ShardIndices]):
    """The shards of L learners, where learner l holds `sizes[l]` images of each of its classes.

    `pools` lists the images of each class in the order in which they are dealt, and `dealt` returns a learner's
    classes and where its images start in these pools.
    """

    def __init__(self, pools: dict[int, Tensor], dealt: Dealt, sizes: Sequence[int]) -> None:
        self._pools, self._dealt, self._sizes = pools, dealt, sizes
        self._kept: dict[int, ShardIndices] = {}

    def __len__(self) -> int:
        """Return the number of learners."""
        return len(self._sizes)

    @overload
    def __getitem__(self, place: int) -> ShardIndices: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[ShardIndices, ...]: ...

    def __getitem__(self, place: int | slice) -> ShardIndices | tuple[ShardIndices, ...]:
        """Return the shard of one learner, or a tuple of shards for a slice."""
        if isinstance(place, slice):
            return tuple(self[one] for one in range(len(self))[place])
        learner = range(len(self))[place]
        if learner not in self._kept:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[learner] = self._made(learner)
        return self._kept[learner]

    def __iter__(self) -> Iterator[ShardIndices]:
        """Yield every learner's shard."""
        return (self[learner] for learner in range(len(self)))

    def _made(self, learner: int) -> ShardIndices:
        classes, starts = self._dealt(learner)
        size = self._sizes[learner]
        rows = [self._pools[label][start : start + size] for label, start in zip(classes, starts, strict=True)]
        return ShardIndices(tuple(classes), torch.stack(rows))
