"""The error for a key or a name that does not exist, with the nearest one that does and all that are allowed."""

from collections.abc import Iterable
from difflib import get_close_matches

_ALIKE = 0.65
"""The ratio of `difflib` from which names count as similar: `mpl` and `mlp` do, `width` and `depth` do not."""


def unknown(what: str, given: object, allowed: Iterable[str], also: str = "") -> str:
    """Return "unknown key 'defences', did you mean 'defenses'? Allowed are attacks, data, ..." for a `what` of "key".

    `also` is what is allowed beside the names in `allowed`, in words.
    """
    names = sorted(allowed)
    listed = " or ".join(part for part in (", ".join(names), also) if part)
    said = f"unknown {what} {given!r}"
    if nearest := did_you_mean(given, names):
        return f"{said}, {nearest} Allowed are {listed}"
    return f"{said}, allowed are {listed}" if listed else said


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """Return "did you mean 'defenses'?" with the nearest of the `allowed` names, empty when none is near."""
    lowered = {name.lower(): name for name in allowed}
    nearest = get_close_matches(str(given).lower(), lowered, n=1, cutoff=_ALIKE)
    return f"did you mean {lowered[nearest[0]]!r}?" if nearest else ""
