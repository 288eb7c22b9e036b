"""The layout of arrays in a reply file, used for both writing and reading."""

import math
import re
from collections.abc import Collection, Iterator

from metaleak.clients.wire.arrays import ArrayTypes, storage_order

IN_FILE = "metaleak.reply-file"
"""The `stype` of an array whose data are the name of the file that holds its numbers."""

FREE = "free-"
"""How the name of a file begins that the server has read, and that a node may use for its next reply."""

_NAME = re.compile(r"[0-9a-f]{32}")
_PAGE = 4096


def head_bytes(rows: int, names: Collection[str]) -> int:
    """Return the number of bytes left free at the start of a file, enough for a record's header."""
    wanted = 2 * _PAGE + 32 * rows + sum(256 + 4 * len(name) for name in names)
    return -(-wanted // _PAGE) * _PAGE


def starts(rows: int, kinds: ArrayTypes) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each stacked array, the offset of its first byte in the file, and its number of bytes."""
    place = head_bytes(rows, kinds)
    for name in storage_order({name: dtype for name, (dtype, _) in kinds.items()}):
        dtype, shape = kinds[name]
        size = rows * math.prod(shape) * dtype.itemsize
        yield name, place, size
        place += size


def is_file_name(text: str) -> bool:
    """Return whether `text` has the form of the file names that `ReplyFile` creates."""
    return _NAME.fullmatch(text) is not None
