"""Gradients of the learners of one message, added up where they were computed."""

import numpy as np
import torch
from flwr.app import ArrayRecord

from metaleak.clients.episode import Parameters
from metaleak.clients.wire.finite import finite_rows
from metaleak.clients.wire.stacked_arrays import StackedArrays
from metaleak.clients.wire.tree_sum import TreeSum


class SummedArrays:
    """Partial sums of the gradients of `count` learners that stand at the positions from `first` on in their round.

    They are those of the server's own sum (`TreeSum`), so that the mean has the same bits whoever adds. A gradient
    with an entry that is not finite is left out, as the server would leave it out.
    """

    def __init__(self, first: int, count: int, like: Parameters) -> None:
        self._first, self._count, self._like = first, count, like
        self._sum = TreeSum()
        self._done = 0

    def append(self, offsets: list[int], gradients: Parameters) -> dict[int, str]:
        """Add gradients `(L, ...)` of the learners at these offsets, ascending and beyond all before.

        Returns the offsets that are left out, each with the reason.
        """
        arrays = {name: value.detach().cpu().numpy() for name, value in gradients.items()}
        if self._added(offsets, arrays):
            return {}
        finite = finite_rows(arrays, len(offsets))
        good = [offset for offset, fine in zip(offsets, finite, strict=True) if fine]
        left_out = dict.fromkeys(sorted(set(offsets) - set(good)), "has entries that are not finite")
        if not self._added(good, {name: value[finite] for name, value in arrays.items()}):
            # Finite one by one: only float64 can be so large.
            left_out |= dict.fromkeys(good, "the sum with others is not finite")
        return left_out

    def record(self) -> ArrayRecord:
        """Return the partial sums in the order of `tree_nodes`, stacked, as Flower's arrays by name, float64."""
        self._sum.add(self._first + self._done, self._count - self._done, [], {})
        parts = self._sum.parts()
        shapes = {name: tuple(value.shape) for name, value in self._like.items()}
        stack = StackedArrays(
            len(parts), like={name: torch.empty(shape, dtype=torch.float64) for name, shape in shapes.items()}
        )
        for part in parts:
            # The one number that changes no bit of a sum.
            sums = part or {name: np.full(shape, -0.0) for name, shape in shapes.items()}
            stack.append({name: torch.from_numpy(value[np.newaxis]) for name, value in sums.items()})
        return stack.record()

    def _added(self, offsets: list[int], arrays: dict[str, np.ndarray]) -> bool:
        """Add all positions up to the last of `offsets`."""
        if not offsets:
            return True
        start, end = self._done, offsets[-1] + 1
        good = self._sum.add(self._first + start, end - start, [offset - start for offset in offsets], arrays)
        if good:
            self._done = end
        return good
