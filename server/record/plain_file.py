"""Files in a directory that a stranger may have made: plain ones alone, through no link, of a limited size."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def plain_file(root: Path, name: str) -> Iterator[int]:
    """Open `root/name` for reading and yield its descriptor.

    Below `root` nothing may be a link, and the file must be a plain one: a pipe would wait for ever, a device never
    end. Raises `OSError`, and `ValueError` for what is no plain file.
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
    """Open `path`, whose last part is no link, as an `opener` of Python's `open`; a pipe does not wait."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def read_plain(root: Path, name: str, limit: int) -> bytes:
    """Return the content of the plain file `root/name`; see `plain_file`.

    Raises `ValueError` in one line that names the file when it is no plain file, or has more than `limit` bytes:
    then none of it was read. Raises `FileNotFoundError` when it is not there.
    """
    with naming(root, name), plain_file(root, name) as file:
        size = os.fstat(file).st_size
        if size > limit:
            raise ValueError(f"{size} bytes, more than the {limit} that are read")
        content = bytearray()
        # What is written to the file in the meantime is not read: its size was the one that was checked.
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
    """Return the names of the folders in the folder `root/name`, sorted; none when it is not there.

    Links and hidden folders are left out. Raises `ValueError` in one line when `root/name` is, or leads through, a
    link or anything else that is no folder, and when it has more than `limit` entries.
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
    """Turn what goes wrong with `root/name`, but for its being missing, into a `ValueError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        # What a system says of a link that may not be followed helps nobody.
        reason = "a link, or behind one" if _leads_through_a_link(root, name) else error.strerror or str(error)
        raise ValueError(f"{root / name}: {reason}") from None
    except ValueError as error:
        raise ValueError(f"{root / name}: {error}") from None


@contextmanager
def _folder(root: Path, folders: list[str]) -> Iterator[int]:
    """Open the folder that lies under `root` by these names, one inside the other, and yield its descriptor."""
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
