"""Reading a directory that a stranger may have made: only plain files, no links, sizes limited."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def plain_file(root: Path, name: str) -> Iterator[int]:
    """Open `root/name` for reading and yield its descriptor.

    No part of the path below `root` may be a link, and the file must be a plain one, because reading a pipe or a
    device may never end. Raises `OSError`, and `ValueError` for what is not a plain file.
    """
    *folders, last = name.split("/")
    with _folder(root, folders) as folder:
        file = os.open(_inside(last), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise ValueError("not a plain file")
            yield file
        finally:
            os.close(file)


def through_no_link(path: str, flags: int) -> int:
    """Open `path` unless its last part is a link; an `opener` for Python's `open`, which never waits for a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def read_plain(root: Path, name: str, limit: int) -> bytes:
    """Return the content of the plain file `root/name`; see `plain_file`.

    Raises `ValueError` in one line that names the file when it is not a plain file or has more than `limit` bytes,
    in which case nothing is read, and `FileNotFoundError` when it does not exist.
    """
    with naming(root, name), plain_file(root, name) as file:
        size = os.fstat(file).st_size
        if size > limit:
            raise ValueError(f"{size} bytes, more than the {limit} that are read")
        content = bytearray()
        # Bytes that are appended in the meantime are not read: their number was not checked.
        while len(content) < size and (part := os.pread(file, size - len(content), len(content))):
            content += part
        return bytes(content)


def is_plain(root: Path, name: str) -> bool:
    """Return whether there is a plain file `root/name`; see `plain_file`."""
    try:
        with plain_file(root, name):
            return True
    except (OSError, ValueError):
        return False


def plain_folders(root: Path, name: str, limit: int) -> list[str]:
    """Return the names of the folders in the folder `root/name`, sorted; an empty list when it does not exist.

    Links and hidden folders are left out. Raises `ValueError` in one line when a part of the path is a link or not a
    folder, and when the folder has more than `limit` entries.
    """
    found: list[str] = []
    try:
        with naming(root, name), _folder(root, name.split("/")) as folder, os.scandir(folder) as entries:
            for number, entry in enumerate(entries, start=1):
                if number > limit:
                    raise ValueError(f"more than the {limit} entries that are read")
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    found.append(entry.name)
    except FileNotFoundError:
        return []
    return sorted(found)


@contextmanager
def naming(root: Path, name: str) -> Iterator[None]:
    """Turn errors with the file `root/name` into a `ValueError` that names it; `FileNotFoundError` passes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        # The system's message about a link that is not followed would be hard to understand.
        reason = "a link, or behind one" if _leads_through_a_link(root, name) else error.strerror or str(error)
        raise ValueError(f"{root / name}: {reason}") from None
    except ValueError as error:
        raise ValueError(f"{root / name}: {error}") from None


@contextmanager
def _folder(root: Path, folders: list[str]) -> Iterator[int]:
    """Open the folder at `root` and these names, each inside the one before, and yield its descriptor."""
    opened = [os.open(root, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for folder in folders:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            opened.append(os.open(_inside(folder), flags, dir_fd=opened[-1]))
        yield opened[-1]
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _inside(part: str) -> str:
    if part in ("", ".", "..") or "\0" in part:
        raise ValueError("not a path inside the directory")
    return part


def _leads_through_a_link(root: Path, name: str) -> bool:
    return any((root / part).is_symlink() for part in [Path(name), *Path(name).parents][:-1])
