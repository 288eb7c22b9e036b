"""Where in a file that is handed over which array lies: the same for who writes it and who reads it."""

import math
import re
from collections.abc import Collection, Iterator

from metaleak.clients.wire.arrays import ArrayTypes, storage_order

IN_FILE = "metaleak.reply-file"
"""How an array says (`stype`) that its data are the name of the file that holds its numbers."""

_NAME = re.compile(r"[0-9a-f]{32}")
_PAGE = 4096


def head_bytes(rows: int, names: Collection[str]) -> int:
    """Return how many bytes stay free at the front of a file: a record's header finds room there."""
    wanted = 2 * _PAGE + 32 * rows + sum(256 + 4 * len(name) for name in names)
    return -(-wanted // _PAGE) * _PAGE


def starts(rows: int, kinds: ArrayTypes) -> Iterator[tuple[str, int, int]]:
    """Yield for each of the stacked arrays its name, its first byte in the file and its number of bytes."""
    place = head_bytes(rows, kinds)
    for name in storage_order({name: dtype for name, (dtype, _) in kinds.items()}):
        dtype, shape = kinds[name]
        size = rows * math.prod(shape) * dtype.itemsize
        yield name, place, size
        place += size


def is_file_name(text: str) -> bool:
    """Return whether `text` is a name that `ReplyFile` gives."""
    return _NAME.fullmatch(text) is not None
