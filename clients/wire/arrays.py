"""Arrays by name, and their types."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
"""Arrays by name."""

ArrayTypes = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Type and shape of arrays by name."""


def array_types(arrays: Arrays, leading: int = 0) -> ArrayTypes:
    """Return the types of arrays, little-endian, and their shapes without the first `leading` axes."""
    return {name: (value.dtype.newbyteorder("<"), value.shape[leading:]) for name, value in arrays.items()}


def storage_order(types: Mapping[str, np.dtype[Any]]) -> list[str]:
    """Return the names of arrays of these `types` in the order in which a file holds them.

    Wide types come first, as in the safetensors library: then every array begins at a multiple of its item's size.
    """
    return sorted(types, key=lambda name: (-types[name].itemsize, name))
