"""Meta-gradients of many learners as Flower arrays, written once and sent without further copies."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord

from metaleak.clients.episode import Parameters

_HEADER = 256
"""Bytes before the numbers; the .npy format lets a header be padded with spaces (NEP 1)."""


class StackedArrays:
    """A buffer for the gradients of `rows` learners, one `.npy` array per parameter, of its type, filled in order.

    Flower sends an array as the bytes of a `.npy` file. Here the gradients are written directly into the buffer that
    holds this file. A NumPy buffer, unlike `bytes`, passes through Ray's object store without first being copied into
    a pickle.
    """

    def __init__(self, rows: int, like: Parameters) -> None:
        self._kinds = {name: (tuple(value.shape), numpy_type(value)) for name, value in like.items()}
        self._files = {
            name: np.empty(_HEADER + dtype.itemsize * rows * math.prod(shape), dtype=np.uint8)
            for name, (shape, dtype) in self._kinds.items()
        }
        self._filled = 0

    def append(self, gradients: Parameters) -> None:
        """Add the gradients of the next learners, each `(L, ...)` on any device."""
        count = len(next(iter(gradients.values())))
        for name, (shape, dtype) in self._kinds.items():
            rows = self._files[name][_HEADER:].view(dtype).reshape(-1, *shape)
            rows[self._filled : self._filled + count] = gradients[name].detach().cpu().numpy()
        self._filled += count

    def record(self) -> ArrayRecord:
        """Return the rows filled so far, as Flower's arrays by name."""
        record = ArrayRecord()
        for name, (shape, dtype) in self._kinds.items():
            full = (self._filled, *shape)
            file = self._files[name][: _HEADER + dtype.itemsize * math.prod(full)]
            file[:_HEADER] = np.frombuffer(_header(full, dtype), dtype=np.uint8)
            record[name] = _array(full, dtype, file)
        return record


def numpy_type(value: torch.Tensor) -> np.dtype[Any]:
    """Return the NumPy type that corresponds to a tensor's type."""
    return torch.empty(0, dtype=value.dtype).numpy().dtype


def _array(shape: tuple[int, ...], dtype: np.dtype[Any], file: npt.NDArray[np.uint8]) -> Array:
    array = Array(dtype=str(dtype), shape=shape, stype="numpy.ndarray", data=b"")
    # Flower reads the data as a buffer everywhere; only its constructor insists on `bytes`.
    array.data = file  # type: ignore[assignment]
    return array


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return the header of a `.npy` file (version 1.0) in C order, `_HEADER` bytes long."""
    described = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}".encode("latin1")
    start = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    return (start + described).ljust(_HEADER - 1) + b"\n"
