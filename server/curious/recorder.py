"""The recorder: makes a record of the messages on a Flower grid without disturbing them."""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, MessageType, RecordDict
from flwr.serverapp import Grid

from metaleak.clients.wire.answer import Refused, array_bytes, asked_learners, in_one_line, views_by_name
from metaleak.clients.wire.arrays import array_types
from metaleak.clients.wire.finite import finite_rows
from metaleak.server.curious import passing
from metaleak.server.curious.answers import AnswerReader, Asked, SentArrays, finite_answer, not_recorded
from metaleak.server.curious.numbering import Numbering
from metaleak.server.curious.passing import Received, Sent, same_arrays
from metaleak.server.curious.watched_grid import WatchedGrid
from metaleak.server.record.layout import Format, Holds
from metaleak.server.record.statements import CONFIG_LIMIT, recordable
from metaleak.server.record.writer import RecordWriter, new_record

_Passing = TypeVar("_Passing")

_LOG = logging.getLogger("metaleak")
_FLOWER_LOG = logging.getLogger("flwr")

LARGEST_REPLY = 16 << 20
"""The default size in bytes that a reply may always have; above it, a reply may have 16 times what was sent."""
_COUNTED = ("left out", "errors", "without arrays", "second answers", "never answered")
_WARNINGS = 100
_ROUNDS_AWAITED = 50
"""For how many later rounds an answer is still waited for."""


class Recorder:
    """Records messages of `message_type`, or of one of its subtypes, and their replies.

    The messages are those of a grid that it watches (`watch`), or those passed to `sent` and `received`. The
    arguments are those of `CuriousServer`. Values beside the arrays are recorded as far as `recordable` allows.

    Arrays are read where they lie in their messages and are never copied. Messages and replies that are not recorded
    are counted. A warning names replies that are left out:

    - a reply to a message that asked for learners by number, if it answers for other learners, or if its names, types
      or shapes differ from those that were sent;
    - a reply that is larger than both `largest_reply` bytes and 16 times what was sent, which could fill the disk;
    - learners with entries that are not finite where those that were sent are finite.

    The strategy still gets these replies. Replies to a message that names no learners may differ in kind; a reader of
    the round leaves out the rarer kinds. A second reply of a learner is not recorded.

    An error, such as a full disk, ends the recording with one line; with `must_record` it is raised. A recorder may
    be used by several threads.
    """

    def __init__(
        self,
        record: str | Path | RecordWriter,
        rounds: int | None = None,
        *,
        message_type: str = MessageType.TRAIN,
        largest_reply: int = LARGEST_REPLY,
        must_record: bool = False,
        holds: Holds | None = None,
        identity: str | None = None,
    ) -> None:
        if rounds is not None and (type(rounds) is not int or rounds < 1):
            raise ValueError(f"rounds must be a whole number >= 1, or None for all, got {rounds!r}")
        if largest_reply < 1:
            raise ValueError(f"largest_reply must be a number of bytes >= 1, got {largest_reply!r}")
        self._format = Format(message_type, holds)
        if isinstance(record, RecordWriter):
            if holds not in (None, record.format.holds):
                raise ValueError(f"holds is {holds!r}, the writer's {record.format.holds!r}")
            if message_type != record.format.message_type:
                raise ValueError(f"message_type is {message_type!r}, the writer's {record.format.message_type!r}")
        Numbering(identity)
        # Where it is made must not depend on where the app goes meanwhile.
        self._place = None if isinstance(record, RecordWriter) else Path(record).absolute()
        self._writer = record if isinstance(record, RecordWriter) else None
        self._path = None if self._writer is None else self._writer.path
        self._limit, self._type = rounds, message_type
        self._identity = identity
        self._largest_reply = largest_reply
        self._must_record = must_record
        self._lock = Lock()
        self._begin()

    def _begin(self) -> None:
        self._stopped = False
        self._open: dict[Hashable, Asked] = {}
        self._rounds: dict[int, dict[int, str]] = {}
        self._last: tuple[int, list[ArrayRecord], SentArrays] | None = None
        self._reader = AnswerReader(Numbering(self._identity), self._largest_reply, self._warn)
        self._round, self._turn, self._highest = 0, 0, -1
        self._asked_nodes: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._reason = ""
        self._warned: set[str] = set()
        self._other_types: dict[str, int] = {}

    @property
    def path(self) -> Path | None:
        """Where the record is, or the last complete one; `None` before the first message of a new one."""
        return self._path

    def watch(self, grid: Grid) -> WatchedGrid:
        """Return a grid that passes everything on to `grid` and records it."""
        return WatchedGrid(
            grid,
            sent=lambda message: self._guarded(lambda: self._sent(passing.sent(message))),
            received=lambda reply: self._guarded(lambda: self._received(passing.received(reply))),
        )

    def sent(self, messages: Iterable[Sent]) -> None:
        """Note messages that are sent; errors of their iterator are not raised either."""
        self._guarded(lambda: _each(self._sent, messages))

    def received(self, replies: Iterable[Received]) -> None:
        """Record all replies of a round to messages that were noted; see `sent`."""
        self._guarded(lambda: _each(self._received, replies))
        self._guarded(self._flush)

    def close_if_open(self) -> None:
        """Complete the record if any message was sent; see `close`."""
        if self._counts["asked"]:
            self.close()

    def close(self) -> None:
        """Complete the index and log what was recorded; later messages begin a new record."""
        self._guarded(self._flush)
        if self._must_record:
            return
        with self._lock:
            self._summarize()
            if self._place is not None:
                self._writer = None
                self._begin()

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def _guarded(self, act: Callable[[], None]) -> None:
        """Call `act` unless recording has stopped; an error in it stops the recording."""
        with self._lock:
            if self._stopped:
                return
            try:
                act()
            except Exception as error:
                if self._must_record:
                    raise
                # Whatever the error is, the recorded app goes on.
                self._stopped = True
                what = f"{type(error).__name__}: {error}"
                _LOG.error("recording has stopped, the training goes on: %s", in_one_line(what))

    def _sent(self, message: Sent) -> None:
        kind = message.kind
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
            self._rounds[round], self._highest = {}, round
            self._turn += 1
            self._forget(round)
        # All messages of a round usually carry one and the same objects: write them once.
        records = list(message.content.array_records.values())
        if self._last is None or self._last[0] != round or not same_arrays(self._last[1], records):
            try:
                self._last = (round, records, self._written(round, message.content))
            except ValueError as error:
                if self._must_record:
                    raise
                self._leave_out(f"round {round}: a message and its answer are not recorded: {error}")
                return
        config, left_out = recordable(message.stated, CONFIG_LIMIT)
        if left_out:
            self._warn(*not_recorded("messages", left_out))
        learners = asked_learners(message.content)
        self._open[message.name] = Asked(round, self._turn, self._last[2], learners, config)

    def _written(self, round: int, content: RecordDict) -> SentArrays:
        arrays = views_by_name(content)
        if self._writer is None:
            assert self._place is not None
            declared = self._format
            self._writer = new_record(self._place, holds=declared.holds, message_type=declared.message_type)
            self._path = self._writer.path
            _FLOWER_LOG.info("Recording what passes in %s", self._writer.path)
        return SentArrays(
            self._writer.sent(round, arrays),
            frozenset(content.array_records),
            array_types(arrays),
            array_bytes(content),
            frozenset(name for name, value in arrays.items() if not finite_rows({name: value[np.newaxis]}, 1)[0]),
        )

    def _received(self, reply: Received) -> None:
        asked = self._open.pop(reply.name, None)
        content = reply.content
        if asked is None:
            if reply.kind in self._other_types and content is not None and content.array_records:
                self._other_types[reply.kind] += 1
            return
        if content is None or not content.array_records:
            self._counts["errors" if content is None else "without arrays"] += 1
            return
        node, known = reply.node, self._rounds[asked.round]
        try:
            answer = self._reader.read(reply, asked, known)
            if known.keys() & set(answer.learners):
                if asked.learners is None:
                    raise Refused("one of its learners is recorded already")
                self._counts["second answers"] += 1
                return
            answer, infinite = finite_answer(answer, asked)
            for learner in infinite:
                self._leave_out(
                    f"round {asked.round}: node {node}'s learner {learner} is not recorded: it is not finite"
                )
            if answer.learners:
                assert self._writer is not None
                self._writer.reply(
                    asked.round,
                    answer.learners,
                    node,
                    asked.sent.name,
                    answer.arrays,
                    config=asked.config,
                    metrics=answer.metrics,
                    file=answer.file,
                )
                known.update(dict.fromkeys(answer.learners, node))
                self._counts["recorded"] += 1
        except ValueError as error:
            self._leave_out(f"round {asked.round}: node {node}'s reply is not recorded: {error}")

    def _round_of(self, message: Sent) -> int:
        """Return the round that a message belongs to: the one that it states, or else the current one.

        Where messages state no round, a new one begins when no reply is awaited or a node is asked again.
        """
        if message.round is not None:
            return message.round
        node = message.node
        if not self._open or node in self._asked_nodes:
            self._round += 1
            self._asked_nodes = set()
        self._asked_nodes.add(node)
        return self._round

    def _forget(self, round: int) -> None:
        """Forget messages that were not answered in many rounds, and earlier rounds that await no reply."""
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

    def _warn(self, kind: str, reason: str) -> None:
        """Log a warning once for each kind."""
        if kind not in self._warned and len(self._warned) < _WARNINGS:
            self._warned.add(kind)
            _LOG.warning("%s", in_one_line(reason))

    def _summarize(self) -> None:
        """Log in one line how many replies were recorded and how many were not."""
        self._counts["never answered"] += len(self._open)
        others = [f"{self._counts[what]} {what}" for what in _COUNTED if self._counts[what]]
        others += [f"{count} of type {kind}" for kind, count in self._other_types.items() if count]
        told = in_one_line(f"; not recorded: {', '.join(others)}" if others else "")
        if self._counts["recorded"]:
            _FLOWER_LOG.info("%d replies are recorded in %s%s", self._counts["recorded"], self.path, told)
        elif not self._stopped:
            asked = f"{self._counts['asked']} messages of type {self._type!r} went out"
            _LOG.warning("nothing is recorded: %s%s", in_one_line(asked), told)


def _each(act: Callable[[_Passing], None], passing: Iterable[_Passing]) -> None:
    for one in passing:
        act(one)
