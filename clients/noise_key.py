"""The secret key of a node's noise, which the server never has."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

_BYTES = 32


def noise_key(path: Path) -> bytes:
    """Return the 32 bytes in the file `path`, which is created with random ones when it is missing.

    The key must stay the same: a learner that is asked again must draw the same noise, or two releases reveal more
    than was accounted for. Only the file's owner may read it. Raises `ValueError` in one line for a file of another
    length or that others may read, and `OSError` when the file can be neither read nor created.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        try:
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_BYTES))
            # A link instead of a rename: if several processes start together, the first one's key is kept.
            with suppress(FileExistsError):
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ValueError(f"{path}: others may read it, so the noise is not secret; use chmod 600, or a new file")
    key = path.read_bytes()
    if len(key) != _BYTES:
        raise ValueError(f"{path}: has {len(key)} bytes, a noise key has {_BYTES}")
    return key
