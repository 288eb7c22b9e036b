"""The record's layout: which files there are, and what the header of a reply says.

    record/
        format.json                     {"format": "metaleak-record", "version": 3, "message-type": ..., "holds": ...}
        sent/<round>-<n>.safetensors    the parameters that went out, by name
        replies/<round>-<n>.safetensors one reply: arrays by name, with a leading axis of its learners
        index/<round>-<n>.parquet       a row per learner and reply: round, learner, node, sent, reply, row, received

`holds` is the kind of the replies: "gradient", "delta" (weights after training minus those that were sent),
"weights", or null where the recorder was not told. `message-type` is the type of the messages that were answered.

A reply's header states where it belongs: `round`, `node`, `sent` (the file with the parameters that it answers),
`received` (seconds since the epoch) and `learners` ("4,7,9": row i of every array is learner i of the list). Only the
headers are read; the index repeats them for pandas and similar tools, and may lag behind. Every file is complete or
absent.

The header may also have, as JSON, `config` (the values that were sent beside the arrays of the message that it
answers, by name) and `metrics` (the values that the reply states beside its own arrays: for each name a list, whose
entry i is learner i's).

Under secure aggregation the server sees no learner's own message. A round then has one reply with one row, whose
learner is the reserved number `AGGREGATE`; its header's `mean-of` lists the learners whose mean the row is.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from metaleak.server.record.statements import CONFIG_LIMIT, METRICS_LIMIT, Statements, Value, checked, parsed, text
from metaleak.server.record.tensor_file import Header, read_json

FORMAT = {"format": "metaleak-record", "version": 3}
FORMAT_LIMIT = 4096  # bytes
FOLDERS = ("sent", "replies", "index")
_SUFFIXES = {"sent": "safetensors", "replies": "safetensors", "index": "parquet"}
_FILE = re.compile(r"([0-9]{6,18})-([0-9]{4,18})\.(?:safetensors|parquet)")
_SENT = re.compile(r"sent/[0-9]{6,18}-[0-9]{4,18}\.safetensors")
_LEARNERS = re.compile(r"[0-9]{1,18}(?:,[0-9]{1,18})*")
_NATURAL = re.compile(r"[0-9]{1,18}")
_NODE_LIMIT = 200
_TYPE_LIMIT = 200

Holds = Literal["gradient", "delta", "weights"]
"""What replies hold: a gradient, weights after local training minus those that were sent, or such weights."""

AGGREGATE = 10**18 - 1
"""The number that stands for all learners of a round together; no learner has it."""


class RecordError(ValueError):
    """Raised for a record that is missing or has a damaged part; the message is one line and names the file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the index: where one learner's gradient of one round lies.

    `node` is Flower's node id as text; `sent` and `reply` are paths inside the record; `row` indexes the leading axis
    of the reply's arrays; `received` is the time of arrival in seconds since the epoch.
    """

    round: int
    learner: int
    node: str
    sent: str
    reply: str
    row: int
    received: float


@dataclass(frozen=True)
class Reply:
    """The content of a reply's header; `name` is its path inside the record, `learners` an int64 array in row order.

    `mean_of` are the learners whose mean the only row is, empty for a reply with a row per learner. `config` holds
    the values that were sent beside the arrays of the message that it answers, `metrics` those that it states beside
    its own: for each name a list in row order.
    """

    name: str
    round: int
    node: str
    sent: str
    received: float
    learners: np.ndarray
    mean_of: np.ndarray
    config: Statements = field(default_factory=dict)
    metrics: dict[str, list[Value]] = field(default_factory=dict)

    def entries(self) -> list[Entry]:
        """Return a row of the index for each learner."""
        return [
            Entry(self.round, learner, self.node, self.sent, self.name, row, self.received)
            for row, learner in enumerate(self.learners.tolist())
        ]


@dataclass(frozen=True)
class Format:
    """The content of `format.json`: the type of the messages whose replies are recorded, and what replies hold."""

    message_type: str
    holds: Holds | None

    def __post_init__(self) -> None:
        kind = self.message_type
        if not isinstance(kind, str) or not 0 < len(kind) <= _TYPE_LIMIT or not kind.isprintable():
            raise ValueError(f"message_type must be a type of messages such as 'train', got {str(kind)[:80]!r}")
        if self.holds is not None and self.holds not in get_args(Holds):
            allowed = ", ".join(repr(one) for one in get_args(Holds))
            raise ValueError(f"holds must be one of {allowed}, or None for unknown, got {str(self.holds)[:80]!r}")

    def content(self) -> bytes:
        """Return the bytes of the file."""
        return json.dumps({**FORMAT, "message-type": self.message_type, "holds": self.holds}).encode()


def read_format(raw: bytes) -> Format:
    """Return the content of `format.json` from its bytes; raises `ValueError` that says what is wrong."""
    declared = read_json(raw)
    if not isinstance(declared, dict) or not isinstance(declared.get("version"), int):
        raise ValueError("it states no version")
    if {name: declared.get(name) for name in FORMAT} != FORMAT:
        told = f"{str(declared.get('format'))[:50]!r} version {declared['version']}"
        raise OtherFormat(f"states {told}, this program reads {FORMAT}")
    return Format(declared.get("message-type", ""), declared.get("holds"))


class OtherFormat(ValueError):
    """A record of another version; the message is one line."""


def reply_metadata(
    round: int,
    node: str,
    sent: str,
    received: float,
    learners: Sequence[int],
    mean_of: Sequence[int] = (),
    config: Mapping[str, Value] | None = None,
    metrics: Mapping[str, Sequence[Value]] | None = None,
) -> dict[str, str]:
    """Return the metadata of a reply's header as safetensors stores it: texts by name."""
    told = {"round": str(round), "node": node, "sent": sent, "received": repr(received), "learners": _text(learners)}
    if mean_of:
        told["mean-of"] = _text(mean_of)
    if config:
        told["config"] = text(config)
    if metrics:
        told["metrics"] = text({name: list(column) for name, column in metrics.items()})
    return told


def read_reply(name: str, header: Header) -> Reply:
    """Return the content of the header of the reply `name`; raises `ValueError` that says what is wrong."""
    told = {key: header.metadata.get(key, "") for key in ("round", "node", "sent", "received", "learners")}
    if not _NATURAL.fullmatch(told["round"]) or int(told["round"]) != parse_name(name)[0]:
        raise ValueError("its header states another round than its name")
    if len(told["node"]) > _NODE_LIMIT or not told["node"].isprintable():
        raise ValueError(f"names no node in at most {_NODE_LIMIT} printable characters")
    if not _SENT.fullmatch(told["sent"]):
        raise ValueError("names no file in sent/ that it answers")
    received = _seconds(told["received"])
    learners = _numbers(told["learners"])
    mean_of = _numbers(header.metadata["mean-of"]) if "mean-of" in header.metadata else np.empty(0, np.int64)
    if (AGGREGATE in learners) != (len(mean_of) > 0) or (len(mean_of) and learners.tolist() != [AGGREGATE]):
        raise ValueError("names learners and a mean of learners, which exclude each other")
    if not header.tensors or any(spec.shape[:1] != learners.shape for spec in header.tensors.values()):
        raise ValueError(f"its arrays are not stacked by its {len(learners)} learners")
    config = {key: checked(value) for key, value in _stated(header, "config", CONFIG_LIMIT).items()}
    metrics: dict[str, list[Value]] = {}
    for key, column in _stated(header, "metrics", METRICS_LIMIT).items():
        if not isinstance(column, list) or len(column) != len(learners):
            raise ValueError(f"its metrics must be lists of one value for each of its {len(learners)} learners")
        metrics[key] = [checked(value) for value in column]
    return Reply(name, int(told["round"]), told["node"], told["sent"], received, learners, mean_of, config, metrics)


def _stated(header: Header, key: str, limit: int) -> dict[str, object]:
    try:
        return parsed(header.metadata[key], limit) if key in header.metadata else {}
    except ValueError as error:
        raise ValueError(f"its {key} {error}") from None


def file_name(folder: str, round: int, number: int) -> str:
    """Return the path inside the record of file `number` of `round`."""
    return f"{folder}/{round:06d}-{number:04d}.{_SUFFIXES[folder]}"


def parse_name(name: str) -> tuple[int, int]:
    """Return round and number of a path that `file_name` made; raises `ValueError` for any other."""
    folder, _, file = name.partition("/")
    match = _FILE.fullmatch(file)
    if not match or folder not in FOLDERS or file_name(folder, int(match[1]), int(match[2])) != name:
        raise ValueError(f"{name!r} is not the name of a record's file")
    return int(match[1]), int(match[2])


def _text(learners: Sequence[int]) -> str:
    return ",".join(str(learner) for learner in learners)


def _numbers(text: str) -> np.ndarray:
    if not _LEARNERS.fullmatch(text):
        raise ValueError("names no learners")
    learners = np.array(text.split(","), np.int64)
    if len(np.unique(learners)) != len(learners):
        raise ValueError("names a learner twice")
    return learners


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if len(text) < 40 and math.isfinite(float(text)):
            return float(text)
    raise ValueError("names no time")
