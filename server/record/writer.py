"""Writing a record, each reply when it arrives; `layout` describes the files.

Every file is written beside its place and then renamed, so that a run that ends at any moment loses no reply.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from metaleak.clients.wire.arrays import Arrays
from metaleak.server.record.background_writer import BackgroundWriter
from metaleak.server.record.index import index_part
from metaleak.server.record.layout import (
    FOLDERS,
    Format,
    Holds,
    RecordError,
    Reply,
    file_name,
    parse_name,
    read_reply,
    reply_metadata,
)
from metaleak.server.record.reader import Record, own_folder
from metaleak.server.record.statements import Value
from metaleak.server.record.tensor_file import HEADER_LIMIT, Header, encoded
from metaleak.server.record.whole_file import numbered, whole_of, write_whole

_LEAST_COPIED = 1 << 20
"""From so many bytes on, copying a file past the system's cache is faster than new memory for the next one."""

_SLOWEST_DISK = 100 << 20
"""Bytes per second; a slower disk is left to the system, which writes a file some time after it was moved."""

_MOVED_AFTERWARDS = 16
"""How many files are moved before the disk's speed is measured again."""


class TensorsOnDisk(Protocol):
    """A file on this disk that holds a reply's arrays as a record's file does, after `head` free bytes."""

    @property
    def head(self) -> int:
        """How many bytes are free in front of the arrays, a multiple of 8."""

    def move(self, to: Path, lead: bytes) -> None:
        """Write `lead`, of `head` bytes, to the front and move the file to `to`; raises `OSError`."""

    def copy(self, to: Path, lead: bytes) -> None:
        """Write `lead`, of `head` bytes, to the front and copy the file to `to`; raises `OSError`."""


class RecordWriter:
    """Writes a new record, each reply when it arrives, or continues one (`resume`); for use by one thread.

    `holds` states what replies hold, `None` where that is not known; `message_type` is the type of the messages.

    With `background` the calls only queue their work there. The arrays are not copied, so the caller must not change
    them afterwards. Raises `RecordError` when something exists at `path` or arrays cannot be recorded, and `OSError`
    when the disk is full (with `background`, from a later call); what was written before stays readable.
    """

    def __init__(
        self,
        path: Path,
        background: BackgroundWriter | None = None,
        *,
        holds: Holds | None = None,
        message_type: str = "train",
    ) -> None:
        declared = Format(message_type, holds)
        taken = RecordError(f"{path}: there is a record already; a record is never overwritten")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise taken
        path.mkdir(parents=True, exist_ok=True)
        try:
            for folder in FOLDERS:
                (path / folder).mkdir()
        except FileExistsError:  # another process was faster
            raise taken from None
        write_whole(path / "format.json", declared.content())
        self._begin(path, background, declared)

    @classmethod
    def resume(cls, path: Path, last_round: int, background: BackgroundWriter | None = None) -> "RecordWriter":
        """Continue the record at `path` after `last_round`; files of later rounds are removed.

        Completes the index of the rounds that are kept. Raises `RecordError` for a path that is not a record, and
        when one of the rounds that are kept is damaged.
        """
        record = Record(path)
        (path / "index").mkdir(exist_ok=True)
        for folder in FOLDERS:
            own_folder(path, folder)
        # Nothing is removed before all that stays has been read.
        kept = {round: record.replies(round) for round in record.rounds if round <= last_round}
        writer = cls.__new__(cls)
        writer._begin(path, background, Format(record.message_type, record.holds))
        # Replies go last to first and before what they answer: a crash in the middle leaves a record, too.
        for folder in ("index", "replies", "sent"):
            for file in sorted((path / folder).iterdir(), key=_place, reverse=True):
                round, number = _place(file)
                if round > last_round or whole_of(file.name):
                    file.unlink()
                elif round >= 0:
                    writer._counts[folder, round] = max(number + 1, writer._counts.get((folder, round), 0))
        for round, replies in kept.items():
            writer._index_anew(round, replies)
        return writer

    def _begin(self, path: Path, background: BackgroundWriter | None, declared: Format) -> None:
        self.path = path
        self.format = declared
        self._background = background
        self._pending: list[Reply] = []
        self._counts: dict[tuple[str, int], int] = {}
        self._moves_left = 0

    def sent(self, round: int, arrays: Arrays) -> str:
        """Write the parameters that go out in `round`; return their path inside the record."""
        name, number = self._next("sent", round)
        _, buffers = self._encoded(name, arrays, {})
        self._do(sum(value.nbytes for value in arrays.values()), partial(write_whole, self.path / name, buffers))
        self._counts["sent", round] = number + 1
        return name

    def reply(
        self,
        round: int,
        learners: Sequence[int],
        node: str,
        sent: str,
        arrays: Arrays,
        mean_of: Sequence[int] = (),
        *,
        config: Mapping[str, Value] | None = None,
        metrics: Mapping[str, Sequence[Value]] | None = None,
        file: TensorsOnDisk | None = None,
    ) -> str:
        """Write one reply, `arrays` stacked in the order of `learners`; return its path inside the record.

        With `mean_of` the one row of `arrays` is the mean over these learners, and `learners` is `[AGGREGATE]`.
        `config` holds the values that were sent beside the arrays, and `metrics` those of the reply: for each name a
        value per learner. `recordable` says which values are allowed. A `file` that holds exactly these arrays is
        copied or moved into the record.
        """
        name, number = self._next("replies", round)
        metadata = reply_metadata(round, node, sent, time.time(), learners, mean_of, config, metrics)
        header, buffers = self._encoded(name, arrays, metadata)
        try:
            reply = read_reply(name, header)
        except ValueError as error:
            raise RecordError(f"{self.path / name}: not recorded, {error}") from None
        if self._pending and self._pending[0].round != round:
            self.flush()
        lead, size = bytes(buffers[0]), sum(value.nbytes for value in arrays.values())
        if file is not None and len(lead) <= file.head <= HEADER_LIMIT:
            spaces = b" " * (file.head - len(lead))
            lead = (file.head - 8).to_bytes(8, "little") + lead[8:] + spaces
            self._do(size, partial(self._store, file, name, lead, size))
        else:
            self._do(size, partial(write_whole, self.path / name, buffers))
        # Only now: a reply that could not be written leaves no gap in the numbers, which the reader would refuse.
        self._counts["replies", round] = number + 1
        self._pending.append(reply)
        return name

    def _store(self, file: TensorsOnDisk, name: str, lead: bytes, size: int) -> None:
        """Copy a file of `size` bytes into the record or, while the disk is slow, move it there."""
        if self._background is None or size < _LEAST_COPIED or self._moves_left:
            self._moves_left = max(0, self._moves_left - 1)
            file.move(self.path / name, lead)
            return
        began = time.monotonic()
        file.copy(self.path / name, lead)
        if size < _SLOWEST_DISK * (time.monotonic() - began):
            self._moves_left = _MOVED_AFTERWARDS

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
        """Write the index of a round as one part, so that the existing parts need not be read."""
        # The other parts are removed first: after a crash in between rows may be missing, but none is there twice.
        for number in range(1, self._counts.get(("index", round), 0)):
            (self.path / file_name("index", round, number)).unlink(missing_ok=True)
        self._index(file_name("index", round, 0), replies)
        self._counts["index", round] = 1


def new_record(path: Path, *, holds: Holds | None = None, message_type: str = "train") -> RecordWriter:
    """Return the writer of a new record at `path`, or, if that exists, beside it, as `<name>-2` and so on.

    Raises `OSError` when no record can be made there.
    """
    for place in numbered(path):
        with suppress(RecordError):
            return RecordWriter(place, holds=holds, message_type=message_type)
    raise AssertionError("there is always another name")


def _place(file: Path) -> tuple[int, int]:
    try:
        return parse_name(f"{file.parent.name}/{file.name}")
    except ValueError:
        return -1, -1
