"""The recorder: turns the messages that pass a Flower grid into a record, and disturbs nothing that passes."""

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
"""Bytes that a reply may always have, by default; a larger one may have 16 times the bytes of what was sent."""
_COUNTED = ("left out", "errors", "without arrays", "second answers", "never answered")
_WARNINGS = 100
_ROUNDS_AWAITED = 50
"""For how many later rounds an answer is still waited for."""


class Recorder:
    """Records the messages that are of `message_type`, or of one of its subtypes, and their replies.

    They are those of a grid that it watches, or those that it is given. `record` is where to make a new record when
    the first message goes out (beside it, as `<name>-2`, where there is something already), or a writer. With
    `rounds`, only the first so many are recorded. `holds` is what replies hold, where that is known, and `identity`
    the name under which a reply states its learner, see `Numbering`. What messages state beside their arrays is
    recorded as far as `recordable` takes it.

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
        """Where the record is, or the last one when it is complete; `None` before the first message of a new one."""
        return self._path

    def watch(self, grid: Grid) -> WatchedGrid:
        """Return a grid that passes everything on and records it."""
        return WatchedGrid(
            grid,
            sent=lambda message: self._guarded(lambda: self._sent(passing.sent(message))),
            received=lambda reply: self._guarded(lambda: self._received(passing.received(reply))),
        )

    def sent(self, messages: Iterable[Sent]) -> None:
        """Take note of messages that go out; what their iterator raises disturbs nobody either."""
        self._guarded(lambda: _each(self._sent, messages))

    def received(self, replies: Iterable[Received]) -> None:
        """Record replies to messages that were noted, all that come of a round; see `sent`."""
        self._guarded(lambda: _each(self._received, replies))
        self._guarded(self._flush)

    def close_if_open(self) -> None:
        """Complete what was recorded, if any message went out; see `close`."""
        if self._counts["asked"]:
            self.close()

    def close(self) -> None:
        """Complete the index and say what was recorded; messages that still come begin a record of their own."""
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
        """Return the round that a message belongs to: the one that it declares, or the present one.

        Without a declaration a round begins when nothing is awaited or a node is asked again.
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

    def _warn(self, kind: str, reason: str) -> None:
        """Warn once of what is of one kind."""
        if kind not in self._warned and len(self._warned) < _WARNINGS:
            self._warned.add(kind)
            _LOG.warning("%s", in_one_line(reason))

    def _summarize(self) -> None:
        """Say in one line what was recorded, and what passed and was not."""
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
