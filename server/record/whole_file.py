"""Files that are complete or as they were before, whatever happens while they are written."""

import os
import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from itertools import count
from pathlib import Path


def write_whole(path: Path, content: bytes | Sequence[bytes | memoryview]) -> None:
    """Write `content` beside `path` and rename it into place; raises `OSError` and leaves no part behind.

    A sequence of buffers is written one after the other, without joining them in memory. If two processes write the
    same file at once, the later rename counts. A process that dies leaves the old file and perhaps a
    `.<name>.<random>.part`. A machine that loses power may lose the file, because it is not synced to the disk.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(beside, "xb") as file:
            for buffer in [content] if isinstance(content, bytes) else content:
                file.write(buffer)
        os.replace(beside, path)
    except BaseException:  # Ctrl-C too
        beside.unlink(missing_ok=True)
        raise


def numbered(path: Path) -> Iterator[Path]:
    """Yield `path` and then places beside it, `<name>-2`, `<name>-3` and so on without end."""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def whole_of(part: str) -> str | None:
    """Return the name of the file whose unfinished `part` a dead process has left, or `None` for other names."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.part", part, re.DOTALL)
    return found and found[1]


def remove_parts(folder: Path, names: Collection[str]) -> None:
    """Remove unfinished parts of the files `names` from `folder`, left by dead processes; nobody may be writing."""
    for file in folder.iterdir():
        if whole_of(file.name) in names:
            file.unlink(missing_ok=True)
