"""Finiteness and norms of the rows of stacked arrays, computed in blocks to use little additional memory."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from metaleak.clients.wire.arrays import Arrays

_BLOCK = 1 << 20  # bytes processed at a time


def finite_rows(arrays: Arrays, rows: int) -> npt.NDArray[np.bool_]:
    """Return, for each of the `rows` along the arrays' leading axis, whether all of its entries are finite."""
    finite = np.ones(rows, np.bool_)
    for value in arrays.values():
        if value.dtype.kind in "fc":
            for block in _blocks(value):
                finite[block] &= _finite(value[block].reshape(block.stop - block.start, -1))
    return finite


def row_norms(arrays: Arrays, rows: int) -> npt.NDArray[np.float64]:
    """Return the L2 norm of each row over all arrays, `(rows,)`; infinite or NaN if one of its entries is."""
    squares = np.zeros(rows)
    for value in arrays.values():
        for block in _blocks(value):
            wide = value[block].reshape(block.stop - block.start, -1).astype(np.float64)
            squares[block] += np.einsum("ij,ij->i", wide, wide)
    return np.sqrt(squares)


def _finite(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return whether all entries are finite, for each of the rows of a matrix."""
    with np.errstate(invalid="ignore", over="ignore"):
        # A finite sum implies finite entries, and takes a quarter of the time that the entries take one by one.
        finite: npt.NDArray[np.bool_] = np.isfinite(np.einsum("ij->i", rows))
    if not finite.all():
        finite[~finite] = np.isfinite(rows[~finite]).all(axis=1)
    return finite


def _blocks(value: np.ndarray) -> list[slice]:
    """Return slices that cut the leading axis into parts of about `_BLOCK` bytes, each of at least one row."""
    step = max(1, _BLOCK // max(1, math.prod(value.shape[1:]) * value.itemsize))
    return [slice(start, min(start + step, len(value))) for start in range(0, len(value), step)]
