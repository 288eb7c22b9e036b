"""Replies that nodes on this machine pass on as files, which are mapped into memory and moved into the record."""

import contextlib
import errno
import math
import mmap
import os
import secrets
import shutil
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, RecordDict

from metaleak.clients.wire.arrays import ArrayTypes
from metaleak.clients.wire.reply_layout import FREE, IN_FILE, head_bytes, is_file_name, starts
from metaleak.server.record.plain_file import plain_file
from metaleak.server.record.whole_file import write_past_cache

_FREE_FILES = 16
"""How many files of replies are kept for the next ones."""

_NUMBERS = frozenset(
    ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")
)
"""The types that a reply's arrays may have, as Flower writes them."""


class ArrivingReplies:
    """The folder into which nodes on this machine write their replies: created on entry and removed afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        if self.folder.is_symlink():
            raise ValueError(f"{self.folder}: a link, which is not followed: replies arrive in the run")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def take(self, reply: Message) -> None:
        """Replace the handles in a reply by the arrays that they stand for.

        Other arrays stay as they are. So does a handle whose file does not exist or does not have exactly the size of
        the arrays; since the few bytes of a handle are no numbers, such a reply is refused later.
        """
        if reply.has_error():
            return
        for record in reply.content.array_records.values():
            if any(array.stype == IN_FILE for array in record.values()):
                with contextlib.suppress(OSError, ValueError):
                    self._open(record)

    def _open(self, record: ArrayRecord) -> None:
        names = {bytes(array.data) for array in record.values()}
        rows = {array.shape[:1] for array in record.values()}
        if len(names) != 1 or len(rows) != 1 or any(array.stype != IN_FILE for array in record.values()):
            raise ValueError("not of one file")
        (name,), ((count,),) = names, rows
        text = name.decode("ascii")
        if not is_file_name(text):
            raise ValueError("not the name of a reply's file")
        if any(array.dtype not in _NUMBERS for array in record.values()):
            raise ValueError("not numbers")
        kinds: ArrayTypes = {key: (np.dtype(array.dtype), tuple(array.shape[1:])) for key, array in record.items()}
        places = {key: (start, size) for key, start, size in starts(count, kinds)}
        with plain_file(self.folder, text) as file:
            size = max(start + length for start, length in places.values())
            if os.fstat(file).st_size != size:
                raise ValueError("not of the size of its arrays")
            memory = mmap.mmap(file, size, access=mmap.ACCESS_READ)
        # No other reply can name the file while it is read, after which its numbers may change.
        taken = self.folder / f"taken-{text}"
        os.rename(self.folder / text, taken)
        opened = ArrivedFile(taken, head_bytes(count, kinds), memory)
        for key, (start, _) in places.items():
            dtype, shape = kinds[key]
            flat = np.frombuffer(opened.memory, dtype, count * math.prod(shape), start)
            record[key] = MappedArray(flat.reshape(count, *shape), opened)


class ArrivedFile:
    """A reply's file at `path`, mapped into `memory`, with `head` free bytes at the front.

    Nodes may use it again when no array refers to the memory any more, unless it was moved.
    """

    def __init__(self, path: Path, head: int, memory: mmap.mmap) -> None:
        self.head, self.memory = head, memory
        self.path = path
        # Every view of the numbers keeps the memory alive, but not this object.
        self._end = weakref.finalize(memory, _free, path)
        # When the process ends, threads may still read, and the folder is removed as a whole.
        self._end.atexit = False

    def move(self, to: Path, lead: bytes) -> None:
        """Write `lead`, of `head` bytes, to the front and move the file to `to`; raises `OSError`."""
        self._lead(lead)
        os.replace(self.path, to)
        self._end.detach()

    def copy(self, to: Path, lead: bytes) -> None:
        """Write `lead`, of `head` bytes, to the front and the whole to `to`, past the system's cache; see `move`.

        So the file's pages in memory can be used again. Where the file system allows no such writing, or has no space
        for a second file, it is moved.
        """
        self._lead(lead)
        try:
            write_past_cache(to, self.memory)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSPC, errno.EDQUOT):
                raise
            self.move(to, lead)

    def _lead(self, lead: bytes) -> None:
        with open(self.path, "r+b", buffering=0) as file:
            file.write(lead)


class MappedArray(Array):
    """A read-only array whose numbers, `mapped`, lie in a file; its bytes are made when they are first used."""

    def __init__(self, mapped: npt.NDArray[Any], file: ArrivedFile) -> None:
        # Before the rest: the data of Flower's class are an attribute.
        self.mapped, self.file = mapped, file
        super().__init__(str(mapped.dtype), mapped.shape, "numpy.ndarray", b"")

    @property
    def data(self) -> bytes:
        """The `.npy` file of the numbers, a copy."""
        return Array(np.asarray(self.mapped)).data

    @data.setter
    def data(self, value: bytes) -> None:
        """Accept only the empty bytes that Flower's constructor sets; raises `AttributeError` for others."""
        if value:
            raise AttributeError("an array that lies in a file is read-only")


def arrived_file(content: RecordDict) -> ArrivedFile | None:
    """Return the file in which all arrays of a message lie, `None` where they lie in none."""
    files = [getattr(array, "file", None) for record in content.array_records.values() for array in record.values()]
    first = files[0] if files else None
    return first if isinstance(first, ArrivedFile) and all(file is first for file in files) else None


def _free(path: Path) -> None:
    """Make a file available to nodes, or remove it if enough are."""
    with contextlib.suppress(OSError):
        if sum(name.startswith(FREE) for name in os.listdir(path.parent)) < _FREE_FILES:
            path.rename(path.with_name(f"{FREE}{secrets.token_hex(16)}"))
        else:
            path.unlink()
