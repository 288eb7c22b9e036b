"""Reading a record of what the server saw; `layout` describes its files.

A record may come from a stranger: whatever its files hold, reading returns data or raises `RecordError`, and takes
memory in proportion to the files' size.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from metaleak.clients.wire.arrays import Arrays, ArrayTypes
from metaleak.clients.wire.finite import finite_rows
from metaleak.server.record.layout import (
    FORMAT_LIMIT,
    Entry,
    Holds,
    OtherFormat,
    RecordError,
    Reply,
    file_name,
    parse_name,
    read_format,
    read_reply,
)
from metaleak.server.record.plain_file import plain_file
from metaleak.server.record.statements import Statements
from metaleak.server.record.tensor_file import Header, read_header, read_tensor

_LOG = logging.getLogger("metaleak")

_Key = frozenset[tuple[str, tuple[np.dtype[Any], tuple[int, ...]]]]


class Record:
    """Reads a record, complete or not.

    Opening a record lists its replies; files are read when a round is asked for, so that a damaged file affects only
    its own round. Reading a round takes the memory of its arrays and of one tensor of a reply.

    Raises:
        RecordError: For a path that is not a record and for damaged parts, in one line that names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open("format.json") as file:
            try:
                self._format = read_format(os.pread(file, FORMAT_LIMIT, 0))
            except OtherFormat as error:
                raise RecordError(f"{path / 'format.json'}: {error}") from None
        self._numbers: dict[int, list[int]] = {}
        self._learners: dict[int, list[int]] = {}
        self._warned: set[str] = set()
        with self._naming("replies"):
            own_folder(path, "replies")
            for name in os.listdir(path / "replies"):
                with suppress(ValueError):  # somebody's notes
                    round, number = parse_name(f"replies/{name}")
                    self._numbers.setdefault(round, []).append(number)

    @property
    def holds(self) -> Holds | None:
        """What the replies hold; `None` where the recorder was not told."""
        return self._format.holds

    @property
    def message_type(self) -> str:
        """The type of the messages whose replies were recorded, such as `train`."""
        return self._format.message_type

    @property
    def rounds(self) -> list[int]:
        """The rounds that have at least one reply, ascending."""
        return sorted(self._numbers)

    @cached_property
    def entries(self) -> list[Entry]:
        """A row for each learner of each reply, ordered by round and reply; reads the header of every reply."""
        return [entry for round in self.rounds for reply in self.replies(round) for entry in reply.entries()]

    def sent(self, round: int) -> Arrays:
        """Return the parameters that the server sent in `round`, by name.

        If it sent several different ones, they are those that the round's first reply answers.
        """
        reply, _ = next(self._replies(round))
        with self._reading(reply.sent) as (names, read):
            return {name: read(name) for name in names}

    def replies(self, round: int) -> list[Reply]:
        """Return the headers of the round's replies, in the order of arrival."""
        return [reply for reply, _ in self._replies(round)]

    def config(self, round: int) -> Statements:
        """Return the values that were sent beside the parameters in `round`, by name, if all messages agree on them.

        The values of a single message are in the `config` of each of the `replies`.
        """
        first, *others = [reply.config for reply in self.replies(round)]
        return {name: value for name, value in first.items() if all(_same(other, name, value) for other in others)}

    def metrics(self, round: int) -> dict[int, Statements]:
        """Return for each learner of `round` the values that its reply states beside arrays, such as `num-examples`.

        The learners are those of all replies, including those that `received` leaves out. A value that a node states
        once for several learners is returned for each of them.
        """
        return {
            learner: {name: column[row] for name, column in reply.metrics.items()}
            for reply in self.replies(round)
            for row, learner in enumerate(reply.learners.tolist())
        }

    def mean_of(self, round: int) -> list[int]:
        """Return the learners of whom the server saw only the mean in `round`; empty if it saw each one's reply."""
        return sorted(learner for reply in self.replies(round) for learner in reply.mean_of.tolist())

    def learners(self, round: int) -> list[int]:
        """Return the learners that `received` returns for `round`, ascending; `[AGGREGATE]` if there is only a mean.

        Reads the arrays, but never more than one tensor of a reply at a time.
        """
        if round not in self._learners:
            replies, _ = self._alike(round)
            unusual = self._infinite(replies)
            found: list[int] = []
            for reply in replies:
                good = np.ones(len(reply.learners), np.bool_)
                with self._reading(reply.name) as (names, read):
                    for name in names:
                        if name not in unusual:
                            good &= finite_rows({name: read(name)}, len(good))
                found += reply.learners[good].tolist()
                self._warn_of_rows(round, reply.learners[~good])
            self._learners[round] = sorted(found)
        return self._served(round, self._learners[round])

    def received(self, round: int) -> tuple[list[int], Arrays]:
        """Return the L learners of `round`, ascending, and what they sent: for each name an array `(L, ...)`.

        Where the server saw only a mean, that is the one row, and its learner is `AGGREGATE`; see `mean_of`. Left
        out, with a warning, are replies whose names, shapes or types differ from those that were sent and from most
        of the round, and learners with entries that are not finite where those that were sent are finite. Raises
        `RecordError` when nothing is left.
        """
        replies, common = self._alike(round)
        learners = np.concatenate([reply.learners for reply in replies])
        order = np.argsort(learners)
        rows = np.empty_like(order)
        rows[order] = np.arange(len(order))
        with self._naming("replies"):  # should there be too little memory
            stacked = {name: np.empty((len(rows), *shape), dtype) for name, (dtype, shape) in common.items()}
        for reply in replies:
            own, rows = np.split(rows, [len(reply.learners)])
            with self._reading(reply.name, common) as (_, read):
                for name, value in stacked.items():
                    value[own] = read(name)
        ascending = learners[order]
        good = finite_rows(stacked, len(ascending))
        if not good.all():
            unusual = self._infinite(replies)
            good = finite_rows({name: stacked[name] for name in stacked if name not in unusual}, len(ascending))
            self._warn_of_rows(round, ascending[~good])
            for value in stacked.values():
                for to, row in enumerate(np.flatnonzero(good)):  # in place
                    value[to] = value[row]
            stacked = {name: value[: good.sum()] for name, value in stacked.items()}
        return self._served(round, ascending[good].tolist()), stacked

    def _alike(self, round: int) -> tuple[list[Reply], ArrayTypes]:
        """Return the replies of a round that can be stacked, and their kind: the one sent, or the most frequent."""
        replies = list(self._replies(round))
        rows: Counter[_Key] = Counter()
        for reply, kind in replies:
            rows[_key(kind)] += len(reply.learners)
        chosen = next(iter(rows))
        if len(rows) > 1:
            sent = {_key(kind) for name in {reply.sent for reply, _ in replies} for kind in self._sent_kind(name)}
            chosen = max(rows, key=lambda key: (key in sent, rows[key]))
        for reply, kind in replies:
            if _key(kind) != chosen:
                self._warn(f"{self.path / reply.name}: left out, it has other names, shapes or types than its round")
        alike = [reply for reply, kind in replies if _key(kind) == chosen]
        learners = np.sort(np.concatenate([reply.learners for reply in alike]))
        again = learners[1:][np.diff(learners) == 0]
        if len(again):
            raise RecordError(f"{self.path}: learner {again[0]} is in round {round} more than once")
        return alike, next(kind for _, kind in replies if _key(kind) == chosen)

    def _sent_kind(self, name: str) -> list[ArrayTypes]:
        """Return the kind of the arrays in the file `name` of `sent/`, if it can be read."""
        with suppress(RecordError), self._open(name) as file:
            return [{key: (spec.dtype, spec.shape) for key, spec in read_header(file).tensors.items()}]
        return []

    def _infinite(self, replies: list[Reply]) -> set[str]:
        """Return the names of sent arrays that are not finite; in replies they need not be finite either."""
        found: set[str] = set()
        for name in {reply.sent for reply in replies}:
            with suppress(RecordError), self._reading(name) as (names, read):
                found |= {key for key in names if not finite_rows({key: read(key)[np.newaxis]}, 1)[0]}
        return found

    def _served(self, round: int, learners: list[int]) -> list[int]:
        if not learners:
            raise RecordError(f"{self.path}: no reply of round {round} is finite")
        return learners

    def _warn_of_rows(self, round: int, learners: np.ndarray) -> None:
        for learner in learners.tolist():
            self._warn(
                f"{self.path}: learner {learner} of round {round} is left out, it has entries that are not finite"
            )

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            _LOG.warning("%s", reason)

    def _replies(self, round: int) -> Iterator[tuple[Reply, ArrayTypes]]:
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

    @contextmanager
    def _reading(
        self, name: str, kind: ArrayTypes | None = None
    ) -> Iterator[tuple[list[str], Callable[[str], np.ndarray]]]:
        """Open a file and yield the names of its tensors and a function that reads one.

        With `kind` the file must still hold arrays of that kind.
        """
        with self._open(name) as file:
            header = read_header(file)
            if kind is not None and _kind(header) != kind:
                raise ValueError("changed while it was read")
            yield list(header.tensors), partial(read_tensor, file, header)

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        with self._naming(name), plain_file(self.path, name) as file:
            yield file

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Turn every error with the file `name` into a `RecordError`."""
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


def _kind(header: Header) -> ArrayTypes:
    """Return what the replies of a round must have in common: names, types, and shapes without the leading axis."""
    return {name: (spec.dtype, spec.shape[1:]) for name, spec in header.tensors.items()}


def _same(config: Statements, name: str, value: object) -> bool:
    """Return whether `config` states the same under `name`; NaN is the same as NaN."""
    return name in config and repr(config[name]) == repr(value)


def _key(kind: ArrayTypes) -> _Key:
    return frozenset(kind.items())


def own_folder(path: Path, folder: str) -> None:
    """Refuse a folder that is a link: its files are not the record's."""
    if not (path / folder).is_dir() or (path / folder).is_symlink():
        raise RecordError(f"{path / folder}: must be a folder inside the record, not a link")
