"""The recorder: turns the messages that pass a Flower grid into a record, and disturbs nothing that passes."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from logging import INFO
from pathlib import Path
from threading import Lock

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from flwr.supercore import log

from metaleak.clients.wire.answer import (
    Refused,
    array_bytes,
    asked_learners,
    in_one_line,
    learner_ids,
    read_answer,
    views_by_name,
)
from metaleak.clients.wire.arrays import Arrays, ArrayTypes, array_types
from metaleak.clients.wire.finite import finite_rows
from metaleak.server.curious.watched_grid import WatchedGrid
from metaleak.server.record.writer import RecordWriter, new_record

_LOG = logging.getLogger("metaleak")

LARGEST_REPLY = 16 << 20
"""Bytes that a reply may always have, by default; a larger one may have `_TIMES` the bytes of what was sent."""
_TIMES = 16
_COUNTED = ("left out", "errors", "without arrays", "second answers", "never answered")
_ROUNDS_AWAITED = 50
"""For how many later rounds an answer is still waited for."""


@dataclass(frozen=True)
class _Sent:
    """Arrays that went out: their file in the record, and what their answers are compared with.

    `infinite` names the arrays that have infinite entries or NaN already, such as a mask among a network's buffers.
    """

    name: str
    records: frozenset[str]
    kinds: ArrayTypes
    size: int
    infinite: frozenset[str]


@dataclass(frozen=True)
class _Asked:
    """A message on its way: `learners` when it names them, `turn` counts the rounds that have begun."""

    round: int
    turn: int
    sent: _Sent
    learners: tuple[int, ...] | None


class Recorder:
    """Records the messages of a grid that are of `message_type`, or of one of its subtypes, and their replies.

    `record` is where to make a new record when the first message goes out (beside it, as `<name>-2`, where there is
    something already), or a writer. With `rounds`, only the first so many are recorded.

    Arrays are looked at in their messages and handed on as they lie there, never copied. What is not recorded is
    counted, and named in a warning where it is refused: a reply to a message that asked for learners by number which
    answers for others, or with other names, types or shapes than were sent; one larger than `largest_reply` bytes and
    16 times what was sent, so that no stranger fills the disk; and of any reply the learners with entries that are
    not finite where what was sent is. To refuse them is the strategy's right. Replies to a message that names no
    learners may differ; of those that do, a reader of the round leaves out the fewer. A second answer of a learner is
    not recorded.

    An error of the disk, or any other, ends the recording with one line and nothing else, unless the `must_record`
    of a caller for whom nothing is worth more than the record asks for it. Grids may be used by several threads.
    """

    def __init__(
        self,
        record: str | Path | RecordWriter,
        rounds: int | None = None,
        *,
        message_type: str = MessageType.TRAIN,
        largest_reply: int = LARGEST_REPLY,
        must_record: bool = False,
    ) -> None:
        if rounds is not None and (type(rounds) is not int or rounds < 1):
            raise ValueError(f"rounds must be a whole number >= 1, or None for all, got {rounds!r}")
        if largest_reply < 1:
            raise ValueError(f"largest_reply must be a number of bytes >= 1, got {largest_reply!r}")
        if not isinstance(message_type, str) or not message_type:
            raise ValueError(f"message_type must be a type of messages such as 'train', got {message_type!r}")
        # Where it is made must not depend on where the app goes meanwhile.
        self._place = None if isinstance(record, RecordWriter) else Path(record).absolute()
        self._writer = record if isinstance(record, RecordWriter) else None
        self._path = None if self._writer is None else self._writer.path
        self._limit = rounds
        self._type = message_type
        self._largest_reply = largest_reply
        self._must_record = must_record
        self._lock = Lock()
        self._begin()

    def _begin(self) -> None:
        self._stopped = False
        self._open: dict[str, _Asked] = {}
        self._rounds: dict[int, set[int]] = {}
        self._last: tuple[int, list[ArrayRecord], _Sent] | None = None
        self._nodes: dict[int, int] = {}
        self._named: set[int] = set()
        self._round, self._turn, self._highest = 0, 0, -1
        self._asked_nodes: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._reason = ""
        self._other_types: dict[str, int] = {}

    @property
    def path(self) -> Path | None:
        """Where the record is, or the last one when it is complete; `None` before the first message of a new one."""
        return self._path

    def watch(self, grid: Grid) -> WatchedGrid:
        """Return a grid that passes everything on and records it."""
        return WatchedGrid(
            grid,
            sent=lambda message: self._guarded(lambda: self._sent(message)),
            received=lambda reply: self._guarded(lambda: self._received(reply)),
        )

    def close(self) -> None:
        """Complete the index and say what was recorded; messages that still come begin a record of their own."""
        self._guarded(lambda: self._writer.flush() if self._writer is not None else None)
        if self._must_record:
            return
        with self._lock:
            self._summarize()
            if self._place is not None:
                self._writer = None
                self._begin()

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do `act` unless recording has stopped; stop it when something is wrong with it."""
        with self._lock:
            if self._stopped:
                return
            try:
                act()
            except Exception as error:
                if self._must_record:
                    raise
                # Whatever it is, the app that is watched goes on.
                self._stopped = True
                what = f"{type(error).__name__}: {error}"
                _LOG.error("recording has stopped, the training goes on: %s", in_one_line(what))

    def _sent(self, message: Message) -> None:
        kind = message.metadata.message_type
        if kind != self._type and not kind.startswith(f"{self._type}."):
            self._other_types.setdefault(kind, 0)
            return
        self._counts["asked"] += 1
        round = self._round_of(message)
        if self._limit is not None and round > self._limit:
            return
        if round not in self._rounds:
            if round <= self._highest:
                self._leave_out(f"round {round}: is asked again after later ones, which is not recorded")
                return
            self._rounds[round], self._highest = set(), round
            self._turn += 1
            self._forget(round)
        # All messages of a round usually carry one and the same objects: write them once.
        records = list(message.content.array_records.values())
        if self._last is None or self._last[0] != round or not _same(self._last[1], records):
            try:
                self._last = (round, records, self._written(round, message))
            except ValueError as error:
                if self._must_record:
                    raise
                self._leave_out(f"round {round}: a message and its answer are not recorded: {error}")
                return
        self._open[message.metadata.message_id] = _Asked(round, self._turn, self._last[2], asked_learners(message))

    def _written(self, round: int, message: Message) -> _Sent:
        arrays = views_by_name(message)
        if self._writer is None:
            assert self._place is not None
            self._writer = new_record(self._place)
            self._path = self._writer.path
            log(INFO, "Recording what passes in %s", self._writer.path)
        return _Sent(
            self._writer.sent(round, arrays),
            frozenset(message.content.array_records),
            array_types(arrays),
            array_bytes(message),
            frozenset(name for name, value in arrays.items() if not finite_rows({name: value[np.newaxis]}, 1)[0]),
        )

    def _received(self, reply: Message) -> None:
        asked = self._open.pop(reply.metadata.reply_to_message_id, None)
        if asked is None:
            kind = reply.metadata.message_type
            if kind in self._other_types and not reply.has_error() and reply.content.array_records:
                self._other_types[kind] += 1
            return
        if reply.has_error() or not reply.content.array_records:
            self._counts["errors" if reply.has_error() else "without arrays"] += 1
            return
        node, known = reply.metadata.src_node_id, self._rounds[asked.round]
        try:
            learners, arrays = self._read(reply, asked)
            if known & set(learners):
                if asked.learners is None:
                    raise Refused("one of its learners is recorded already")
                self._counts["second answers"] += 1
                return
            learners, arrays = self._finite(learners, arrays, asked, node)
            if learners:
                assert self._writer is not None
                self._writer.reply(asked.round, learners, str(node), asked.sent.name, arrays)
                known.update(learners)
                self._counts["recorded"] += 1
        except ValueError as error:
            self._leave_out(f"round {asked.round}: node {node}'s reply is not recorded: {error}")

    def _read(self, reply: Message, asked: _Asked) -> tuple[list[int], Arrays]:
        """Return the learners of a reply and their arrays, stacked in that order; raises `Refused`."""
        sent = asked.sent
        if asked.learners is not None:
            answer = read_answer(reply, asked.learners, sent.kinds, sent.records)
            return [asked.learners[row] for row in answer.rows], answer.gradients
        if array_bytes(reply) > max(self._largest_reply, _TIMES * sent.size):
            raise Refused(
                f"over {_TIMES} times as large as what was sent, and than largest_reply, {self._largest_reply} bytes"
            )
        node, learners, arrays = reply.metadata.src_node_id, learner_ids(reply), views_by_name(reply)
        if learners is None:
            return [self._number_of(node)], {name: value[np.newaxis] for name, value in arrays.items()}
        if any(value.shape[:1] != (len(learners),) for value in arrays.values()):
            raise Refused("not stacked by its learner ids")
        others = {number for other, number in self._nodes.items() if other != node}
        if others & set(learners):
            raise Refused("names a learner that stands for another node")
        self._named.update(learners)
        return learners, arrays

    def _number_of(self, node: int) -> int:
        """Return the learner that stands for a node which names none: the next that nobody is or has named."""
        if node not in self._nodes:
            taken = self._named.union(self._nodes.values())
            self._nodes[node] = next(number for number in count() if number not in taken)
        return self._nodes[node]

    def _finite(self, learners: list[int], arrays: Arrays, asked: _Asked, node: int) -> tuple[list[int], Arrays]:
        """Return the learners all of whose entries are finite; where what was sent is not, nothing is asked."""
        looked_at = arrays
        if asked.learners is None:
            looked_at = {name: value for name, value in arrays.items() if name not in asked.sent.infinite}
        good = finite_rows(looked_at, len(learners))
        if good.all():
            return learners, arrays
        for learner in np.array(learners)[~good].tolist():
            self._leave_out(f"round {asked.round}: node {node}'s learner {learner} is not recorded: it is not finite")
        return np.array(learners)[good].tolist(), {name: value[good] for name, value in arrays.items()}

    def _round_of(self, message: Message) -> int:
        """Return the round that a message belongs to: the one that it declares, or the present one.

        Without a declaration a round begins when nothing is awaited or a node is asked again.
        """
        for config in message.content.config_records.values():
            value = config.get("server-round")
            if type(value) is int and value >= 0:
                return value
        node = message.metadata.dst_node_id
        if not self._open or node in self._asked_nodes:
            self._round += 1
            self._asked_nodes = set()
        self._asked_nodes.add(node)
        return self._round

    def _forget(self, round: int) -> None:
        """Forget messages that were not answered in many rounds, and earlier rounds of which nothing is awaited."""
        for name in [name for name, asked in self._open.items() if asked.turn < self._turn - _ROUNDS_AWAITED]:
            del self._open[name]
            self._counts["never answered"] += 1
        awaited = {asked.round for asked in self._open.values()}
        self._rounds = {known: what for known, what in self._rounds.items() if known >= round - 1 or known in awaited}

    def _leave_out(self, reason: str) -> None:
        self._counts["left out"] += 1
        if reason != self._reason:  # many messages of a round may share one
            self._reason = reason
            _LOG.warning("%s", in_one_line(reason))

    def _summarize(self) -> None:
        """Say in one line what was recorded, and what passed and was not."""
        self._counts["never answered"] += len(self._open)
        others = [f"{self._counts[what]} {what}" for what in _COUNTED if self._counts[what]]
        others += [f"{count} of type {kind}" for kind, count in self._other_types.items() if count]
        told = in_one_line(f"; not recorded: {', '.join(others)}" if others else "")
        if self._counts["recorded"]:
            log(INFO, "%d replies are recorded in %s%s", self._counts["recorded"], self.path, told)
        elif not self._stopped:
            asked = f"{self._counts['asked']} messages of type {self._type!r} went out"
            _LOG.warning("nothing is recorded: %s%s", in_one_line(asked), told)


def _same(left: list[ArrayRecord], right: list[ArrayRecord]) -> bool:
    """Return whether array records hold the same bytes; of those that are one object none is looked at."""
    return len(left) == len(right) and all(
        one is other
        or (list(one) == list(other) and all(_same_bytes(one[name].data, other[name].data) for name in one))
        for one, other in zip(left, right, strict=True)
    )


def _same_bytes(left: object, right: object) -> bool:
    return left is right or (isinstance(left, bytes) and isinstance(right, bytes) and left == right)
