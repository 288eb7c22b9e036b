"""Reading a received array as a view, after checking its size."""

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array

_LONGEST_HEADER = 4096
_MAGIC = b"\x93NUMPY"
# What NumPy writes for plain numbers (NEP 1). NumPy's own reader accepts any Python literal, and may raise any error.
_HEADER = re.compile(
    rb"\{'descr': '([<>|][biufc][0-9]{1,2})', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \}[ ]*\n"
)


def view(array: Array) -> npt.NDArray[Any]:
    """Return a read-only view of the numbers in the data of `array`, without copying them.

    An array that states neither type nor shape, as in Flower's classic workflow, takes both from its `.npy` header.
    An array with the attribute `mapped`, which the server sets for a file from a node on its own machine, was checked
    when that was set, and is returned as it is.

    Raises `ValueError` with a one-line message when the data are not a plain `.npy` file of exactly the size given by
    its header, or when the shape in the header differs from that of the array.
    """
    mapped = getattr(array, "mapped", None)
    if isinstance(mapped, np.ndarray):
        return mapped
    if array.stype != "numpy.ndarray":
        raise ValueError(f"is serialized as {str(array.stype)[:40]!r}, expected 'numpy.ndarray'")
    data = memoryview(array.data).cast("B").toreadonly()
    start = {b"\x01\x00": 10, b"\x02\x00": 12}.get(bytes(data[6:8]), 0)
    if bytes(data[:6]) != _MAGIC or not start or len(data) < start:
        raise ValueError("is not a .npy file of version 1 or 2")
    offset = start + int.from_bytes(data[8:start], "little")
    parsed = _HEADER.fullmatch(bytes(data[start:offset])) if offset <= min(len(data), _LONGEST_HEADER) else None
    if parsed is None:
        raise ValueError("has a .npy header that is damaged or describes something other than plain numbers")
    try:
        dtype = np.dtype(parsed[1].decode())
        shape = tuple(int(size) for size in parsed[3].decode().split(",") if size.strip())
    except (TypeError, ValueError):
        raise ValueError("has a .npy header with an unknown type or a damaged shape") from None
    stated = bool(array.dtype or array.shape)
    if stated and shape != tuple(array.shape):
        raise ValueError(f"states shape {tuple(array.shape)}, but its .npy header states {shape}")
    held, expected = len(data) - offset, math.prod(shape) * dtype.itemsize
    if held != expected:
        raise ValueError(f"of shape {shape} and type {dtype} takes {expected} bytes, but it has {held}")
    flat = np.frombuffer(data, dtype=dtype, offset=offset)
    return flat.reshape(shape[::-1]).T if parsed[2] == b"True" else flat.reshape(shape)
