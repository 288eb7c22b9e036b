"""The user's cache directory, for data that are slow to decode or have to be unpacked.

Several processes may ask for the same entry at once: each writes a temporary entry of its own and moves it into
place in one step, so that no process reads an incomplete entry.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt


def cache_directory() -> Path:
    """Return `$XDG_CACHE_HOME/metaleak`, or `~/.cache/metaleak` where that is not set to an absolute path."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "metaleak"


def digest(*parts: str | Path) -> str:
    """Return a name for a cache entry that depends on `parts`: on texts, and on the contents of files (`Path`).

    Raises `OSError` when a file cannot be read.
    """
    total = hashlib.blake2b(digest_size=12)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                content = hashlib.file_digest(file, "blake2b").digest()
        else:
            content = hashlib.blake2b(part.encode()).digest()
        total.update(content)
    return total.hexdigest()


def kept_directory(name: str, fill: Callable[[Path], None]) -> Path:
    """Return the cached directory `name`; if it is missing, `fill` is called with an empty directory to fill.

    Raises what `fill` raises, and `OSError` when the cache cannot be written; neither leaves anything behind.
    """
    entry = cache_directory() / name
    if entry.is_dir():
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=entry.parent))
    try:
        fill(temporary)
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
            # Another process was first, with the same content.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return entry


def kept_images(name: str, make: Callable[[], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Return the cached uint8 array `name`; if it is missing, the one that `make` returns, which is then cached.

    A cached file that cannot be read is made again. If the cache cannot be written, `make` is called each time.
    """
    entry = cache_directory() / f"{name}.npy"
    try:
        cached = np.load(entry, allow_pickle=False)
        if isinstance(cached, np.ndarray) and cached.dtype == np.uint8:
            return cached
    except (OSError, ValueError, EOFError):
        pass
    images = make()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".unfinished-", dir=entry.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, images, allow_pickle=False)
            Path(temporary).replace(entry)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError:
        pass
    return images
