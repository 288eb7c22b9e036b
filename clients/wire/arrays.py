"""Named arrays and their types."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
"""Arrays, keyed by name."""

ArrayTypes = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""The type and shape of each array, keyed by name."""


def array_types(arrays: Arrays, leading: int = 0) -> ArrayTypes:
    """Return the little-endian types of arrays and their shapes without the first `leading` axes."""
    return {name: (value.dtype.newbyteorder("<"), value.shape[leading:]) for name, value in arrays.items()}


def storage_order(types: Mapping[str, np.dtype[Any]]) -> list[str]:
    """Return the names of arrays of these `types` in the order in which they are stored in a file.

    Wider types come first, as in the safetensors library, so that every array starts at a multiple of its item size.
    """
    return sorted(types, key=lambda name: (-types[name].itemsize, name))
