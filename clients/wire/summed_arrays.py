"""Partial sums of the gradients of one message's learners, added up on the node that computed them."""

import numpy as np
import torch
from flwr.app import ArrayRecord

from metaleak.clients.episode import Parameters
from metaleak.clients.wire.finite import finite_rows
from metaleak.clients.wire.stacked_arrays import StackedArrays
from metaleak.clients.wire.tree_sum import TreeSum


class SummedArrays:
    """Partial sums of the gradients of the `count` learners at consecutive positions in the round from `first`.

    They are the partial sums of the server's own summation (`TreeSum`), so the mean has the same bits wherever it is
    added up. A gradient with non-finite entries is left out, as the server would do.
    """

    def __init__(self, first: int, count: int, like: Parameters) -> None:
        self._first, self._count, self._like = first, count, like
        self._sum = TreeSum()
        self._done = 0

    def append(self, offsets: list[int], gradients: Parameters) -> dict[int, str]:
        """Add gradients `(L, ...)` of the learners at these offsets, which ascend and exceed all previous ones.

        Returns the offsets that are left out, each with the reason.
        """
        arrays = {name: value.detach().cpu().numpy() for name, value in gradients.items()}
        if self._added(offsets, arrays):
            return {}
        finite = finite_rows(arrays, len(offsets))
        good = [offset for offset, fine in zip(offsets, finite, strict=True) if fine]
        left_out = dict.fromkeys(sorted(set(offsets) - set(good)), "has entries that are not finite")
        if not self._added(good, {name: value[finite] for name, value in arrays.items()}):
            # Each is finite by itself: only float64 entries can be large enough for this.
            left_out |= dict.fromkeys(good, "the sum with others is not finite")
        return left_out

    def record(self) -> ArrayRecord:
        """Return the partial sums as float64 Flower arrays by name, stacked in the order of `tree_nodes`."""
        self._sum.add(self._first + self._done, self._count - self._done, [], {})
        parts = self._sum.parts()
        shapes = {name: tuple(value.shape) for name, value in self._like.items()}
        stack = StackedArrays(
            len(parts), like={name: torch.empty(shape, dtype=torch.float64) for name, shape in shapes.items()}
        )
        for part in parts:
            # -0.0 is the only number that never changes a bit of a sum.
            sums = part or {name: np.full(shape, -0.0) for name, shape in shapes.items()}
            stack.append({name: torch.from_numpy(value[np.newaxis]) for name, value in sums.items()})
        return stack.record()

    def _added(self, offsets: list[int], arrays: dict[str, np.ndarray]) -> bool:
        """Add all positions up to the last of `offsets`; return whether everything was finite."""
        if not offsets:
            return True
        start, end = self._done, offsets[-1] + 1
        good = self._sum.add(self._first + start, end - start, [offset - start for offset in offsets], arrays)
        if good:
            self._done = end
        return good
