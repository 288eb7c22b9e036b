"""Making foreign text safe to print: no control characters, which could change what a terminal shows."""

import re
from typing import Any

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tabs and line ends, and halves of surrogate pairs, which cannot be printed."""


def unprintable(text: str) -> bool:
    """Return whether `text` has a character that must not be printed."""
    return _UNPRINTABLE.search(text) is not None


def printable(plain: Any) -> Any:
    """Return plain data with a blank for every character, in keys and values, that must not be printed."""
    if isinstance(plain, str):
        return _UNPRINTABLE.sub(" ", plain)
    if isinstance(plain, dict):
        return {printable(key): printable(value) for key, value in plain.items()}
    return [printable(one) for one in plain] if isinstance(plain, list) else plain
