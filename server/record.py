"""The record: what the server saw, in files that any tool can read.

    record/
        format.json                     {"format": "metaleak-record", "version": 1}
        sent/<round>-<n>.safetensors    the parameters that went out, by name
        replies/<round>-<n>.safetensors one reply: arrays by name, with a leading axis of its learners
        index/<round>.parquet           a row a learner and reply: round, learner, node, sent, reply, row, received

Every file is complete or absent: it is written beside its place and renamed into it. A reply's file repeats its index
rows in its header, so that a run which ended in the middle of a round loses nothing.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from metaleak.server.whole_file import write_whole

Arrays = dict[str, np.ndarray]

_FORMAT = {"format": "metaleak-record", "version": 1}
_SCHEMA = pa.schema(
    [
        ("round", pa.int64()),
        ("learner", pa.int64()),
        ("node", pa.string()),
        ("sent", pa.string()),
        ("reply", pa.string()),
        ("row", pa.int64()),
        ("received", pa.float64()),
    ]
)


class RecordError(ValueError):
    """A record that is not there, or has a damaged part; the message is one line and names the file."""


@dataclass(frozen=True)
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


class RecordWriter:
    """Writes a new record, each reply as it arrives.

    Raises `RecordError` when there is something at `path` already, and `OSError` when the disk is full: what was
    written before stays readable.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and any(path.iterdir()):
            raise RecordError(f"{path}: there is a record already; a record is never overwritten")
        self.path = path
        for folder in ("sent", "replies", "index"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        write_whole(path / "format.json", json.dumps(_FORMAT).encode())
        self._pending: list[Entry] = []
        self._counts: dict[tuple[str, int], int] = {}

    def sent(self, round: int, arrays: Arrays) -> str:
        """Write the parameters that go out in `round`; return their path inside the record."""
        name = self._name("sent", round)
        write_whole(self.path / name, save({key: np.asarray(value, order="C") for key, value in arrays.items()}))
        return name

    def reply(self, round: int, learners: Sequence[int], node: str, sent: str, arrays: Arrays) -> str:
        """Write one reply, `arrays` stacked in the order of `learners`; return its path inside the record."""
        if any(value.shape[:1] != (len(learners),) for value in arrays.values()):
            raise RecordError(f"round {round}: a reply of {len(learners)} learners is not stacked by learner")
        name, received = self._name("replies", round), time.time()
        entries = [Entry(round, learner, node, sent, name, row, received) for row, learner in enumerate(learners)]
        header = {"entries": json.dumps([asdict(entry) for entry in entries])}
        contiguous = {key: np.asarray(value, order="C") for key, value in arrays.items()}
        write_whole(self.path / name, save(contiguous, metadata=header))
        if self._pending and self._pending[0].round != round:
            self.flush()
        self._pending.extend(entries)
        return name

    def flush(self) -> None:
        """Write the index rows that are not in a Parquet file yet."""
        if self._pending:
            name = self._name("index", self._pending[0].round).removesuffix(".safetensors") + ".parquet"
            table = pa.Table.from_pylist([asdict(entry) for entry in self._pending], schema=_SCHEMA)
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            write_whole(self.path / name, sink.getvalue().to_pybytes())
            self._pending = []

    def _name(self, folder: str, round: int) -> str:
        number = self._counts.get((folder, round), 0)
        self._counts[folder, round] = number + 1
        return f"{folder}/{round:06d}-{number:04d}.safetensors"


class Record:
    """Reads a record, finished or not.

    Raises `RecordError` for a path that is no record and for damaged parts, naming the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            declared = json.loads((path / "format.json").read_text())
        except FileNotFoundError:
            raise RecordError(f"{path}: no record here (format.json is missing)") from None
        except (OSError, ValueError) as error:
            raise RecordError(f"{path / 'format.json'}: damaged ({error})") from None
        if declared != _FORMAT:
            raise RecordError(f"{path / 'format.json'}: says {declared!r}, this version reads {_FORMAT!r}")
        self.entries = self._read_index()

    @property
    def rounds(self) -> list[int]:
        """The rounds that have at least one reply, ascending."""
        return sorted({entry.round for entry in self.entries})

    def sent(self, round: int) -> Arrays:
        """Return the parameters that the server sent in `round`."""
        return self._load(self._of_round(round)[0].sent)

    def gradients(self, round: int) -> tuple[list[int], Arrays]:
        """Return the learners of `round`, ascending, and what each sent, stacked in that order."""
        entries = sorted(self._of_round(round), key=lambda entry: entry.learner)
        replies = {entry.reply: self._load(entry.reply) for entry in entries}
        names = list(replies[entries[0].reply])
        try:
            if min(entry.row for entry in entries) < 0:
                raise IndexError("a row below 0")
            stacked = {name: np.stack([replies[e.reply][name][e.row] for e in entries]) for name in names}
        except (KeyError, IndexError, ValueError) as error:
            raise RecordError(f"{self.path}: round {round} has replies of different shapes ({error})") from None
        return [entry.learner for entry in entries], stacked

    def _of_round(self, round: int) -> list[Entry]:
        entries = [entry for entry in self.entries if entry.round == round]
        if not entries:
            rounds = self.rounds
            span = f"{rounds[0]} to {rounds[-1]}" if rounds else "none"
            raise RecordError(f"{self.path}: round {round} is not recorded, the recorded rounds are {span}")
        return entries

    def _read_index(self) -> list[Entry]:
        entries: list[Entry] = []
        for part in sorted((self.path / "index").glob("*.parquet")):
            try:
                table = pq.read_table(part, schema=_SCHEMA)
                if any(column.null_count for column in table.columns):
                    raise TypeError("empty cells")
                entries.extend(Entry(**row) for row in table.to_pylist())
            except (OSError, TypeError, pa.ArrowException) as error:
                raise RecordError(f"{part}: damaged ({str(error).splitlines()[0]})") from None
        indexed = {entry.reply for entry in entries}
        for reply in sorted((self.path / "replies").glob("*.safetensors")):
            name = f"replies/{reply.name}"
            if name not in indexed:
                entries.extend(self._entries_in_header(name))
        for entry in entries:
            for name in (entry.sent, entry.reply):
                if not (self.path / name).resolve().is_relative_to(self.path.resolve()):
                    raise RecordError(f"{self.path}: the index names {name!r}, which lies outside the record")
        return entries

    def _entries_in_header(self, name: str) -> list[Entry]:
        try:
            with safe_open(self.path / name, framework="numpy") as opened:
                return [Entry(**row) for row in json.loads(opened.metadata()["entries"])]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{self.path / name}: damaged ({error})") from None

    def _load(self, name: str) -> Arrays:
        try:
            with safe_open(self.path / name, framework="numpy") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError, ValueError) as error:
            raise RecordError(f"{self.path / name}: damaged or missing ({error})") from None
