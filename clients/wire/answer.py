"""Parsing of a reply and its checks against the request, for both the strategy and the recorder."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from flwr.app import Array, RecordDict

from metaleak.clients.wire.arrays import Arrays, ArrayTypes
from metaleak.clients.wire.received_array import view

_OF_LEARNERS = ("learner-ids", "missing-ids", "missing-kinds", "missing-reasons")

Missing = Literal["dropped", "late", "failed", "refused"]


class Refused(ValueError):
    """A reply that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Answer:
    """The contributions of the learners that a message requested.

    `rows` holds the ascending offsets, among the requested learners, of those that answered. `gradients` holds their
    gradients as views stacked in that order or, if `summed`, their partial sums. `missing` gives, for each other
    learner, the kind of failure and a one-line reason.
    """

    rows: list[int]
    gradients: Arrays
    missing: dict[int, tuple[Missing, str]]
    summed: bool = False


def read_answer(
    content: RecordDict,
    asked: Sequence[int],
    kinds: ArrayTypes,
    records: Collection[str] = ("arrays",),
    parts: int | None = None,
) -> Answer:
    """Parse a reply with this `content` to a message that requested the learners `asked`, without copying arrays.

    If the message requested sums in `parts` parts, the reply may hold these partial sums in float64 instead of
    gradients. Whether the numbers are finite is not checked.

    Raises `Refused` unless the array records are named `records` and hold exactly the arrays in `kinds`, with these
    names, types and shapes, stacked over requested learners in ascending order.
    """
    learners, missing = _who(content, asked)
    summed = parts is not None and content.config_records["config"].get("summed") is True
    there = content.array_records
    if set(there) != set(records):
        raise Refused(f"array records {_short(sorted(there))}, expected {_short(sorted(records))}")
    arrays = arrays_by_name(content)
    if set(arrays) != set(kinds):
        raise Refused(f"arrays {_short(sorted(arrays))}, expected {_short(sorted(kinds))}")
    gradients: Arrays = {}
    for name, (dtype, shape) in kinds.items():
        value = _viewed(name, arrays[name])
        expected = (parts if summed and parts is not None else len(learners), *shape)
        dtype = np.dtype("<f8") if summed else dtype
        if value.shape != expected:
            raise Refused(f"{name} has shape {value.shape}, expected {expected}")
        if value.dtype != dtype:
            raise Refused(f"{name} is {value.dtype}, expected {dtype}")
        gradients[name] = value
    offsets = {learner: offset for offset, learner in enumerate(asked)}
    return Answer([offsets[learner] for learner in learners], gradients, missing, summed)


def learner_ids(content: RecordDict, key: str = "learner-ids") -> list[int] | None:
    """Return the learners listed under `key` in a message's config record `config`; `None` without such an entry.

    Raises `Refused` when the entry is not a list of whole numbers.
    """
    config = content.config_records.get("config")
    numbers = None if config is None else config.get(key)
    if numbers is None:
        return None
    if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
        raise Refused(f"{key} are not a list of whole numbers")
    return numbers  # type: ignore[return-value]


def asked_learners(content: RecordDict) -> tuple[int, ...] | None:
    """Return the learners that a message requests; `None` when `learner-ids` is missing or not a list of integers."""
    try:
        learners = learner_ids(content)
    except Refused:
        return None
    return None if learners is None else tuple(learners)


def array_bytes(content: RecordDict) -> int:
    """Return the size of a message's arrays in bytes, at least 1024 to allow for headers."""
    records = content.array_records.values()
    return max(1024, sum(len(array.data) for record in records for array in record.values()))


def arrays_by_name(content: RecordDict) -> dict[str, Array]:
    """Return a message's arrays by name, or by `<record>/<name>` if there are several array records."""
    records = content.array_records
    return {
        name if len(records) == 1 else f"{key}/{name}": array
        for key, record in records.items()
        for name, array in record.items()
    }


def views_by_name(content: RecordDict) -> Arrays:
    """Return views of a message's arrays, named as in `arrays_by_name`; raises `Refused` if an array is malformed."""
    return {name: _viewed(name, array) for name, array in arrays_by_name(content).items()}


def statements(content: RecordDict) -> dict[str, object]:
    """Return the entries of a message's metric and config records by name, or `<record>/<name>` if names repeat.

    Entries that only map the arrays to learners (`learner-ids` and the like) are left out.
    """
    told = [
        (key, name, value)
        for records in (content.metric_records, content.config_records)
        for key, record in records.items()
        for name, value in record.items()
        if not (key == "config" and name in _OF_LEARNERS)
    ]
    names = Counter(name for _, name, _ in told)
    return {name if names[name] == 1 else f"{key}/{name}": value for key, name, value in told}


def in_one_line(text: str) -> str:
    """Return untrusted text as one line of at most 300 characters, without control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:300]


def _viewed(name: str, array: Array) -> np.ndarray:
    try:
        return view(array)
    except ValueError as error:
        raise Refused(f"{name} {error}") from None


def _who(content: RecordDict, asked: Sequence[int]) -> tuple[list[int], dict[int, tuple[Missing, str]]]:
    learners = learner_ids(content)
    if learners is None:
        raise Refused("no learner ids")
    absent = learner_ids(content, "missing-ids") or []
    known = set(asked)
    for number in (*learners, *absent):
        if number not in known:
            raise Refused(f"learner {str(number)[:40]} was not asked")
    if learners != sorted(set(learners)) or set(learners) & set(absent):
        raise Refused("learner ids are not ascending or are repeated")
    kinds, reasons = (
        value if isinstance(value := content.config_records["config"].get(key, []), list) else []
        for key in ("missing-kinds", "missing-reasons")
    )
    there = set(learners)
    missing: dict[int, tuple[Missing, str]] = {
        number: ("failed", "the node's reply does not mention it") for number in asked if number not in there
    }
    for number, kind, reason in zip(absent, kinds, reasons, strict=False):
        word: Missing = kind if kind in ("dropped", "late", "refused") else "failed"
        missing[number] = (word, str(reason)[:200])
    return learners, missing


def _short(names: list[str]) -> str:
    """Return untrusted names as one short line of text."""
    text = ", ".join(repr(name)[:60] for name in names[:8])
    return f"[{text}{', ...' if len(names) > 8 else ''}]"
