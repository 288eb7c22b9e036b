"""Files that are complete or as they were before, whatever happens while they are written."""

import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path


def write_whole(path: Path, content: bytes | Sequence[bytes | memoryview]) -> None:
    """Write `content` beside `path` and rename it into place; raises `OSError` and leaves no part behind.

    A sequence of buffers is written one after the other and not joined in memory. A process that dies leaves the old
    file and perhaps a `.<name>.part`; a machine that loses its power may lose the file: nothing waits for the disk.
    """
    beside = path.with_name(part_of(path.name))
    try:
        with open(beside, "wb") as file:
            for buffer in [content] if isinstance(content, bytes) else content:
                file.write(buffer)
        os.replace(beside, path)
    except BaseException:  # Ctrl-C too
        beside.unlink(missing_ok=True)
        raise


def part_of(name: str) -> str:
    """Return the name under which the file `name` is written before it is complete."""
    return f".{name}.part"


def numbered(path: Path) -> Iterator[Path]:
    """Yield `path` and then places beside it, `<name>-2`, `<name>-3` and so on without end."""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")
