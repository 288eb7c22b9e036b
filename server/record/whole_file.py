"""Files that are complete or as they were before, whatever happens while they are written."""

import errno
import fcntl
import mmap
import os
import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path


def write_whole(path: Path, content: bytes | Sequence[bytes | memoryview]) -> None:
    """Write `content` beside `path` and rename it into place; raises `OSError` and leaves no part behind.

    A sequence of buffers is written one after the other, without joining them in memory. If two processes write the
    same file at once, the later rename counts. A process that dies leaves the old file and perhaps a
    `.<name>.<random>.part`. A machine that loses power may lose the file, because it is not synced to the disk.
    """
    with _replacing(path) as beside, open(beside, "xb") as file:
        for buffer in [content] if isinstance(content, bytes) else content:
            file.write(buffer)


def write_past_cache(path: Path, content: mmap.mmap) -> None:
    """Write `content` as `write_whole` does, but past the system's page cache, so that it takes up no new memory.

    Only the owner may read it. Raises `OSError`, with `EINVAL` or `EOPNOTSUPP` where the system or the file system
    cannot do this.
    """
    if not hasattr(os, "O_DIRECT"):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(path))
    with _replacing(path) as beside, memoryview(content) as numbers:
        whole = len(numbers) - len(numbers) % mmap.PAGESIZE
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
        try:
            _write(file, numbers[:whole])
            # Only whole pages can be written past the cache.
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
            _write(file, numbers[whole:])
        finally:
            os.close(file)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a new path beside `path`, and rename what was written there to `path`, or remove it after an error."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield beside
        os.replace(beside, path)
    except BaseException as error:  # Ctrl-C too
        if isinstance(error, OSError) and error.filename is None:
            # Writing to an open file that does not fit on the disk does not say which.
            error.filename = str(path)
        beside.unlink(missing_ok=True)
        raise


def _write(file: int, rest: memoryview) -> None:
    while rest.nbytes:
        rest = rest[os.write(file, rest) :]


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
