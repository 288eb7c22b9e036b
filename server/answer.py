"""What a reply says, once it has been checked against what was asked."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from flwr.app import Message

from metaleak.server.received_array import view
from metaleak.server.record import Arrays
from metaleak.server.shares import Share

Missing = Literal["dropped", "late", "failed"]

Shapes = dict[str, tuple[int, ...]]


class Refused(ValueError):
    """A reply that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Answer:
    """What the learners of a share sent.

    `rows` are the ascending offsets in the share of those that answered, `gradients` what they sent, float32 views
    stacked in that order. `missing` says of the other learners why, in a word and a line.
    """

    rows: list[int]
    gradients: Arrays
    missing: dict[int, tuple[Missing, str]]


def read_answer(reply: Message, share: Share, shapes: Shapes) -> Answer:
    """Return what `reply` answers to `share`; nothing of it is copied.

    Raises `Refused` when it is not float32 arrays of the names and `shapes` that were sent, stacked by learners of
    the share in ascending order. Whether the numbers are finite is not looked at.
    """
    learners, missing = _who(reply, share)
    arrays = next(iter(reply.content.array_records.values()), None)
    if arrays is None:
        raise Refused("no arrays")
    if set(arrays) != set(shapes):
        raise Refused(f"arrays {_short(sorted(arrays))}, expected {_short(sorted(shapes))}")
    gradients: Arrays = {}
    for name, shape in shapes.items():
        expected = (len(learners), *shape)
        if tuple(arrays[name].shape) != expected:
            raise Refused(f"{name} has shape {tuple(arrays[name].shape)}, expected {expected}")
        try:
            gradients[name] = view(arrays[name])
        except ValueError as error:
            raise Refused(f"{name}: {error}") from None
        if gradients[name].dtype != np.float32:
            raise Refused(f"{name} is {gradients[name].dtype}, expected float32")
    offsets = {learner: offset for offset, learner in enumerate(share.learners)}
    return Answer([offsets[learner] for learner in learners], gradients, missing)


def _who(reply: Message, share: Share) -> tuple[list[int], dict[int, tuple[Missing, str]]]:
    config = reply.content.config_records.get("config")
    if config is None or not isinstance(config.get("learner-ids"), list):
        raise Refused("no learner ids")
    learners, absent = (_asked(config.get(key, []), share) for key in ("learner-ids", "missing-ids"))
    kinds, reasons = (
        value if isinstance(value := config.get(key, []), list) else []
        for key in ("missing-kinds", "missing-reasons")
    )
    if learners != sorted(set(learners)) or set(learners) & set(absent):
        raise Refused("learner ids are not ascending, or stand twice")
    missing: dict[int, tuple[Missing, str]] = {
        number: ("failed", "the node did not speak of it") for number in share.learners if number not in learners
    }
    for number, kind, reason in zip(absent, kinds, reasons, strict=False):
        known: Missing = "dropped" if kind == "dropped" else "late" if kind == "late" else "failed"
        missing[number] = (known, str(reason)[:200])
    return learners, missing


def _asked(numbers: object, share: Share) -> list[int]:
    """Return `numbers`, all of which are learners of the share."""
    if not isinstance(numbers, list):
        raise Refused("no learner ids")
    known = set(share.learners)
    for number in numbers:
        if number not in known:
            raise Refused(f"learner {str(number)[:40]} was not asked")
    return numbers


def in_one_line(text: str) -> str:
    """Return what a stranger said as one short line without control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:300]


def _short(names: list[str]) -> str:
    """Return names as text that stays one short line, whatever a stranger called them."""
    text = ", ".join(repr(name)[:60] for name in names[:8])
    return f"[{text}{', ...' if len(names) > 8 else ''}]"
