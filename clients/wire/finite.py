"""Which rows of stacked arrays are finite, and how long they are, in little more memory than the arrays."""

import math

import numpy as np
import numpy.typing as npt

from metaleak.clients.wire.arrays import Arrays

_BLOCK = 1 << 20  # bytes that are looked at together


def finite_rows(arrays: Arrays, rows: int) -> npt.NDArray[np.bool_]:
    """Return for each of the `rows` of the arrays' leading axis whether all its entries are finite numbers."""
    finite = np.ones(rows, np.bool_)
    for value in arrays.values():
        if value.dtype.kind in "fc":
            for block in _blocks(value):
                finite[block] &= np.isfinite(value[block]).reshape(block.stop - block.start, -1).all(axis=1)
    return finite


def row_norms(arrays: Arrays, rows: int) -> npt.NDArray[np.float64]:
    """Return the L2 norm of each row over all arrays; infinite or NaN where an entry is."""
    squares = np.zeros(rows)
    for value in arrays.values():
        for block in _blocks(value):
            wide = value[block].reshape(block.stop - block.start, -1).astype(np.float64)
            squares[block] += np.einsum("ij,ij->i", wide, wide)
    return np.sqrt(squares)


def _blocks(value: np.ndarray) -> list[slice]:
    """Return slices that cut the leading axis into parts of about `_BLOCK` bytes, at least a row each."""
    step = max(1, _BLOCK // max(1, math.prod(value.shape[1:]) * value.itemsize))
    return [slice(start, min(start + step, len(value))) for start in range(0, len(value), step)]
