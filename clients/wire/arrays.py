"""Arrays by name, and their types."""

from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
"""Arrays by name."""

ArrayTypes = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Type and shape of arrays by name."""


def array_types(arrays: Arrays, leading: int = 0) -> ArrayTypes:
    """Return the types of arrays, little-endian, and their shapes without the first `leading` axes."""
    return {name: (value.dtype.newbyteorder("<"), value.shape[leading:]) for name, value in arrays.items()}
