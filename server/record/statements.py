"""The values that a message states beside its arrays, as text in a header: a flat JSON object of bounded size.

The text is written by Python's `json`: numbers that are not finite are `NaN`, `Infinity` or `-Infinity`.
"""

import json
from collections.abc import Mapping
from typing import TypeVar

from metaleak.server.record.tensor_file import without_repeats

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]
Statements = dict[str, Value]
"""The stated values, by name."""

_Kept = TypeVar("_Kept")

CONFIG_LIMIT = 2**14
"""The most characters that the text of a message's configuration may have."""
METRICS_LIMIT = 2**17
"""The most characters that the text of a reply's metrics may have."""
NAME_LIMIT = 200
_NUMBER_LIMIT = 2**63
_DIGITS = 20


def recordable(stated: Mapping[str, object], limit: int) -> tuple[Statements, list[str]]:
    """Return the entries that can be recorded, and the (shortened) names of those that cannot.

    Recorded are whole numbers of 64 bits, floats, texts, booleans and flat lists of these, under printable names, as
    long as `text` of all of them has at most `limit` characters. Bytes, which may hold anything, are never recorded.
    """
    return _fitting({name: _plain(value) for name, value in stated.items()}, limit)


def recordable_columns(
    stated: Mapping[str, object], limit: int, rows: int, stacked: bool
) -> tuple[dict[str, list[Value]], list[str]]:
    """Return the `recordable` entries of a reply of `rows` learners as lists with a value per learner, and the rest.

    In a `stacked` reply a list of exactly `rows` values has one for each learner; any other value holds for all.
    """
    columns: dict[str, list[Value] | None] = {}
    for name, value in stated.items():
        plain = _plain(value)
        if plain is None:
            columns[name] = None
        elif stacked and isinstance(plain, list) and len(plain) == rows:
            columns[name] = list(plain)
        else:
            columns[name] = [plain] * rows
    return _fitting(columns, limit)


def _fitting(values: Mapping[str, _Kept | None], limit: int) -> tuple[dict[str, _Kept], list[str]]:
    kept: dict[str, _Kept] = {}
    left_out: list[str] = []
    size = 2
    for name, value in values.items():
        room = len(json.dumps({name: value})) if value is not None and _is_name(name) else 0
        if value is None or not room or size + room > limit:
            left_out.append(str(name)[:40])
        else:
            kept[name] = value
            size += room
    return kept, left_out


def text(statements: Mapping[str, object]) -> str:
    """Return statements as the text that `parsed` reads."""
    return json.dumps(statements)


def parsed(stated: str, limit: int) -> dict[str, object]:
    """Return the object in a text of at most `limit` characters; its names are checked, its values are not.

    Raises `ValueError` that says what is wrong.
    """
    if len(stated) > limit:
        raise ValueError(f"has {len(stated)} characters, at most {limit} are allowed")
    try:
        found = json.loads(stated, object_pairs_hook=without_repeats, parse_int=_whole)
    except RecursionError:
        raise ValueError("is JSON that is nested too deeply") from None
    except json.JSONDecodeError:
        raise ValueError("is not JSON") from None
    if not isinstance(found, dict) or not all(_is_name(name) for name in found):
        raise ValueError("is not a JSON object with printable names")
    return found


def checked(value: object) -> Value:
    """Return a parsed value; raises `ValueError` when it is neither a scalar nor a flat list of scalars."""
    plain = _plain(value)
    if plain is None:
        raise ValueError("has a value that is neither a scalar nor a flat list of scalars")
    return plain


def _plain(value: object) -> Value | None:
    if isinstance(value, list | tuple):
        scalars = [_scalar(one) for one in value]
        return None if any(one is None for one in scalars) else [one for one in scalars if one is not None]
    return _scalar(value)


def _scalar(value: object) -> Scalar | None:
    """Return a scalar as one of Python's own, and `None` for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -_NUMBER_LIMIT <= value < _NUMBER_LIMIT else None
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value):
        return str(value)
    return None


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= NAME_LIMIT and name.isprintable()


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"has a whole number of more than {_DIGITS} digits")
    return int(digits)
