"""Gradients passed to the server in a local file; the message then carries only the name of the file."""

import contextlib
import math
import os
import secrets
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from metaleak.clients.episode import Parameters
from metaleak.clients.wire.arrays import ArrayTypes
from metaleak.clients.wire.reply_layout import FREE, IN_FILE, starts
from metaleak.clients.wire.stacked_arrays import StackedArrays, numpy_type


class ReplyFile:
    """A new file in `folder` for the gradients of `rows` learners, filled in order, as in `StackedArrays`.

    The numbers are stored in the order of a record's file, after `head_bytes` free bytes. A file that the server has
    freed is used again if there is one: its pages are in memory already, and new ones can take longer than the
    arithmetic. The file is removed unless `record` passes it on. Raises `OSError` when there is not enough disk
    space.
    """

    def __init__(self, folder: Path, rows: int, like: Parameters) -> None:
        self._rows, self._like = rows, like
        self._kinds: ArrayTypes = {name: (numpy_type(value), tuple(value.shape)) for name, value in like.items()}
        self._starts = {name: start for name, start, _ in starts(rows, self._kinds)}
        self._name, self._filled = secrets.token_hex(16), 0
        self._path = folder / self._name
        self._file = _opened(folder, self._path)
        self._end = weakref.finalize(self, _forget, self._file, self._path)
        size = max(start + length for _, start, length in starts(rows, self._kinds))
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, size)
            # Also where disk space cannot be reserved in advance (macOS), or a used file is larger.
            os.ftruncate(self._file, size)
        except OSError:
            self._end()
            raise

    def append(self, gradients: Parameters) -> None:
        """Add the gradients of the next learners, each `(L, ...)` on any device."""
        count = len(next(iter(gradients.values())))
        for name, (dtype, shape) in self._kinds.items():
            value = np.ascontiguousarray(gradients[name].detach().cpu().numpy(), dtype)
            size = math.prod(shape) * dtype.itemsize
            _write(self._file, value.reshape(-1).view(np.uint8).data, self._starts[name] + self._filled * size)
        self._filled += count

    def record(self) -> ArrayRecord:
        """Return Flower's arrays by name: references to the file or, if rows are missing, the numbers themselves."""
        if self._filled < self._rows:
            return self._numbers()
        record = ArrayRecord()
        for name, (dtype, shape) in self._kinds.items():
            record[name] = Array(str(dtype), (self._rows, *shape), IN_FILE, self._name.encode())
        self._end.detach()
        os.close(self._file)
        return record

    def _numbers(self) -> ArrayRecord:
        stack = StackedArrays(self._filled, self._like)
        rows = {}
        for name, (dtype, shape) in self._kinds.items():
            size = self._filled * math.prod(shape) * dtype.itemsize
            rows[name] = torch.from_numpy(_read(self._file, size, self._starts[name], dtype).reshape(-1, *shape))
        if self._filled:
            stack.append(rows)
        self._end()
        return stack.record()


def _opened(folder: Path, path: Path) -> int:
    """Return the descriptor of a file of the `folder` that is free, renamed to `path`, or else of a new one."""
    with os.scandir(folder) as entries:
        free = [entry.path for entry in entries if entry.name.startswith(FREE)]
    for place in free:
        # Another process may have been faster.
        with contextlib.suppress(OSError):
            os.rename(place, path)
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def _write(file: int, rest: memoryview, place: int) -> None:
    while rest.nbytes:
        count = os.pwrite(file, rest, place)
        rest, place = rest[count:], place + count


def _read(file: int, size: int, place: int, dtype: np.dtype[Any]) -> np.ndarray:
    found = np.empty(size, np.uint8)
    rest = found.data
    while rest.nbytes:
        count = os.preadv(file, [rest], place)
        rest, place = rest[count:], place + count
    return found.view(dtype)


def _forget(file: int, path: Path) -> None:
    os.close(file)
    with contextlib.suppress(OSError):
        path.unlink()
