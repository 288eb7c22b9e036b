"""The record: what the server saw, in files that any tool can read. `record_layout` says which and how.

Every file is written beside its place and renamed into it, so that a run which ended anywhere loses no reply.
A record may come from a stranger: whatever its files hold, reading gives data or a `RecordError`, and takes memory
that goes with the files' size.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from metaleak.server.background_writer import BackgroundWriter
from metaleak.server.record_index import index_part
from metaleak.server.record_layout import (
    AGGREGATE,
    FOLDERS,
    FORMAT,
    Entry,
    RecordError,
    Reply,
    file_name,
    parse_name,
    read_reply,
    reply_metadata,
)
from metaleak.server.tensor_file import Arrays, Header, encoded, plain_file, read_header, read_json, read_tensor
from metaleak.server.whole_file import write_whole

__all__ = ["AGGREGATE", "Arrays", "Entry", "Record", "RecordError", "RecordWriter"]

_Kind = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]

_FORMAT_LIMIT = 4096  # bytes


class RecordWriter:
    """Writes a new record, each reply as it arrives, or continues one (`resume`).

    With `background` the calls only queue there, and the arrays are neither copied nor looked at again until they are
    written: they are the writer's from then on, and whoever changes them changes the record. Raises `RecordError`
    when there is something at `path` already or arrays cannot be recorded, and `OSError` when the disk is full (with
    `background`, from a later call): what was written before stays readable. For one thread.
    """

    def __init__(self, path: Path, background: BackgroundWriter | None = None) -> None:
        if path.exists() and any(path.iterdir()):
            raise RecordError(f"{path}: there is a record already; a record is never overwritten")
        for folder in FOLDERS:
            (path / folder).mkdir(parents=True, exist_ok=True)
        write_whole(path / "format.json", json.dumps(FORMAT).encode())
        self._begin(path, background)

    @classmethod
    def resume(cls, path: Path, last_round: int, background: BackgroundWriter | None = None) -> "RecordWriter":
        """Continue the record at `path` after `last_round`: what lies there of later rounds is removed.

        Completes the index of the rounds that stay. Raises `RecordError` for a path that is no record, and when one
        of the rounds that stay is damaged.
        """
        record = Record(path)
        (path / "index").mkdir(exist_ok=True)
        for folder in FOLDERS:
            _own_folder(path, folder)
        # Nothing is removed before all that stays has been read.
        kept = {round: record.replies(round) for round in record.rounds if round <= last_round}
        writer = cls.__new__(cls)
        writer._begin(path, background)
        # Replies go last to first and before what they answer: a crash in the middle leaves a record, too.
        for folder in ("index", "replies", "sent"):
            for file in sorted((path / folder).iterdir(), key=_place, reverse=True):
                round, number = _place(file)
                if round > last_round or (file.name.startswith(".") and file.name.endswith(".part")):
                    file.unlink()
                elif round >= 0:
                    writer._counts[folder, round] = max(number + 1, writer._counts.get((folder, round), 0))
        for round, replies in kept.items():
            writer._index_anew(round, replies)
        return writer

    def _begin(self, path: Path, background: BackgroundWriter | None) -> None:
        self.path = path
        self._background = background
        self._pending: list[Reply] = []
        self._counts: dict[tuple[str, int], int] = {}

    def sent(self, round: int, arrays: Arrays) -> str:
        """Write the parameters that go out in `round`; return their path inside the record."""
        name, number = self._next("sent", round)
        _, buffers = self._encoded(name, arrays, {})
        self._do(sum(value.nbytes for value in arrays.values()), partial(write_whole, self.path / name, buffers))
        self._counts["sent", round] = number + 1
        return name

    def reply(
        self, round: int, learners: Sequence[int], node: str, sent: str, arrays: Arrays, mean_of: Sequence[int] = ()
    ) -> str:
        """Write one reply, `arrays` stacked in the order of `learners`; return its path inside the record.

        With `mean_of` the one row of `arrays` is the mean over these learners, and `learners` is `[AGGREGATE]`.
        """
        name, number = self._next("replies", round)
        metadata = reply_metadata(round, node, sent, time.time(), learners, mean_of)
        header, buffers = self._encoded(name, arrays, metadata)
        try:
            reply = read_reply(name, header)
        except ValueError as error:
            raise RecordError(f"{self.path / name}: not recorded, {error}") from None
        if self._pending and self._pending[0].round != round:
            self.flush()
        self._do(sum(value.nbytes for value in arrays.values()), partial(write_whole, self.path / name, buffers))
        # Only now: a reply that could not be written leaves no gap in the numbers, which the reader would refuse.
        self._counts["replies", round] = number + 1
        self._pending.append(reply)
        return name

    def flush(self) -> None:
        """Write the index rows that are not in a Parquet file yet."""
        if self._pending:
            round = self._pending[0].round
            name, number = self._next("index", round)
            self._do(sum(reply.learners.nbytes for reply in self._pending), partial(self._index, name, self._pending))
            self._counts["index", round] = number + 1
            self._pending = []

    def _next(self, folder: str, round: int) -> tuple[str, int]:
        number = self._counts.get((folder, round), 0)
        return file_name(folder, round, number), number

    def _do(self, size: int, job: Callable[[], None]) -> None:
        if self._background is None:
            job()
        else:
            self._background.submit(size, job)

    def _encoded(
        self, name: str, arrays: Arrays, metadata: dict[str, str]
    ) -> tuple[Header, list[bytes | memoryview]]:
        try:
            parse_name(name)
            return encoded(arrays, metadata)
        except ValueError as error:
            raise RecordError(f"{self.path / name}: not recorded, {error}") from None

    def _index(self, name: str, replies: list[Reply]) -> None:
        write_whole(self.path / name, [index_part(replies)])

    def _index_anew(self, round: int, replies: list[Reply]) -> None:
        """Write the index of a round in one part; which replies its parts held needs no reading then."""
        # The others go first: a crash in between leaves rows that are missing, not rows that are there twice.
        for number in range(1, self._counts.get(("index", round), 0)):
            (self.path / file_name("index", round, number)).unlink(missing_ok=True)
        self._index(file_name("index", round, 0), replies)
        self._counts["index", round] = 1


class Record:
    """Reads a record, finished or not.

    Opening lists the replies, reading a round reads its files: a damaged one spoils its own round. Raises
    `RecordError` for a path that is no record and for damaged parts, naming the file. Reading a round takes the
    memory of its arrays and of one tensor of a reply.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open("format.json") as file:
            declared = read_json(os.pread(file, _FORMAT_LIMIT, 0))
            if not isinstance(declared, dict) or not isinstance(declared.get("version"), int):
                raise ValueError("it says no version")
        if declared != FORMAT:
            told = f"{str(declared.get('format'))[:50]!r} version {declared['version']}"
            raise RecordError(f"{path / 'format.json'}: says {told}, this program reads {FORMAT}")
        self._numbers: dict[int, list[int]] = {}
        with self._naming("replies"):
            _own_folder(path, "replies")
            for name in os.listdir(path / "replies"):
                with suppress(ValueError):  # somebody's notes
                    round, number = parse_name(f"replies/{name}")
                    self._numbers.setdefault(round, []).append(number)

    @property
    def rounds(self) -> list[int]:
        """The rounds that have at least one reply, ascending."""
        return sorted(self._numbers)

    @cached_property
    def entries(self) -> list[Entry]:
        """A row for each learner of each reply, by round and reply; reads the header of every reply."""
        return [entry for round in self.rounds for reply in self.replies(round) for entry in reply.entries()]

    def sent(self, round: int) -> Arrays:
        """Return the parameters that the server sent in `round` (of several, those that its first reply answers)."""
        reply, _ = next(self._replies(round))
        return self._load(reply.sent)

    def replies(self, round: int) -> list[Reply]:
        """Return what the headers of the round's replies say, in the order of arrival."""
        return [reply for reply, _ in self._replies(round)]

    def mean_of(self, round: int) -> list[int]:
        """Return the learners whose mean is all that the server saw in `round`; empty where it saw each one's own."""
        return sorted(learner for reply in self.replies(round) for learner in reply.mean_of.tolist())

    def gradients(self, round: int) -> tuple[list[int], Arrays]:
        """Return the learners of `round`, ascending, and what each sent, stacked in that order.

        Where the server saw a mean alone, that is the one row, and its learner `AGGREGATE`; see `mean_of`.
        """
        replies = []
        for reply, kind in self._replies(round):
            replies.append(reply)
            if len(replies) == 1:
                common = kind
            elif kind != common:
                raise RecordError(f"{self.path / reply.name}: other names, shapes or types than in {replies[0].name}")
        learners = np.concatenate([reply.learners for reply in replies])
        order = np.argsort(learners)
        again = learners[order][1:][np.diff(learners[order]) == 0]
        if len(again):
            raise RecordError(f"{self.path}: learner {again[0]} is in round {round} more than once")
        rows = np.empty_like(order)
        rows[order] = np.arange(len(order))
        with self._naming("replies"):  # should there be too little memory
            stacked = {name: np.empty((len(rows), *shape), dtype) for name, (dtype, shape) in common.items()}
        for reply in replies:
            own, rows = np.split(rows, [len(reply.learners)])
            with self._open(reply.name) as file:
                header = read_header(file)
                if _kind(header) != common:
                    raise ValueError("changed while it was read")
                for name, value in stacked.items():
                    value[own] = read_tensor(file, header, name)
        return learners[order].tolist(), stacked

    def _replies(self, round: int) -> Iterator[tuple[Reply, _Kind]]:
        if round not in self._numbers:
            rounds = self.rounds
            span = f"{rounds[0]} to {rounds[-1]}" if rounds else "none"
            raise RecordError(f"{self.path}: round {round} is not recorded, the recorded rounds are {span}")
        for number, there in enumerate(sorted(self._numbers[round])):
            name = file_name("replies", round, number)
            if there != number:
                raise RecordError(f"{self.path / name}: missing, there are later ones")
            with self._open(name) as file:
                header = read_header(file)
                reply = read_reply(name, header)
            yield reply, _kind(header)

    def _load(self, name: str) -> Arrays:
        with self._open(name) as file:
            header = read_header(file)
            return {key: read_tensor(file, header, key) for key in header.tensors}

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        with self._naming(name), plain_file(self.path, name) as file:
            yield file

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Turn what goes wrong with the file `name` into a `RecordError`."""
        try:
            yield
        except RecordError:
            raise
        except FileNotFoundError:
            missing = "missing" if name != "format.json" else "missing, there is no record here"
            raise RecordError(f"{self.path / name}: {missing}") from None
        except (OSError, ValueError, MemoryError) as error:
            reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
            raise RecordError(f"{self.path / name}: damaged ({' '.join(reason.split())})") from None


def _kind(header: Header) -> _Kind:
    """Return what the replies of a round must have in common: names, types, and shapes without the leading axis."""
    return {name: (spec.dtype, spec.shape[1:]) for name, spec in header.tensors.items()}


def _own_folder(path: Path, folder: str) -> None:
    """Refuse a folder that is a link: what lies in it is not the record's."""
    if not (path / folder).is_dir() or (path / folder).is_symlink():
        raise RecordError(f"{path / folder}: no folder of the record")


def _place(file: Path) -> tuple[int, int]:
    try:
        return parse_name(f"{file.parent.name}/{file.name}")
    except ValueError:
        return -1, -1
