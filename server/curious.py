"""The curious server: a plug-in that records every reply that a Flower strategy receives."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from metaleak.server.received_array import view
from metaleak.server.record import Arrays, RecordWriter
from metaleak.server.watched_grid import WatchedGrid

_LOG = logging.getLogger("metaleak")
_LARGEST = 16
"""How many times larger than the parameters a learner's reply may be; control variates and the like make it
larger.
"""


class CuriousServer(Strategy):
    """Wraps any Flower strategy and records what passes, before aggregation; changes nothing that passes.

    >>> strategy = CuriousServer(FedAvg(), "runs/mine/record")          # doctest: +SKIP
    >>> strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)  # doctest: +SKIP

    Training messages and their replies are recorded; a reply that is an error is not (it has no arrays). A reply that
    names its learners in a config entry `learner-ids` holds their arrays stacked; any other is taken as one learner,
    whose number is that of its node in order of appearance. With `rounds`, only the first so many are recorded: a
    long training fills a disk. `record` is where to make a new record, or a writer, such as one that works in the
    background. Raises `RecordError` when there is a record already.

    An application that writes its own loop uses the other door, `curious_grid`.
    """

    def __init__(self, strategy: Strategy, record: str | Path | RecordWriter, rounds: int | None = None) -> None:
        self.strategy = strategy
        writer = record if isinstance(record, RecordWriter) else RecordWriter(Path(record))
        self._recorder = Recorder(writer, rounds)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the wrapped strategy's own `start` on a grid that records."""
        try:
            return self.strategy.start(
                self._recorder.watch(grid),
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
            )
        finally:
            self._recorder.close()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Refuse: only `start` sees the replies as they arrive.

        Raises `RuntimeError`: an application with a loop of its own, or another wrapper around this one, would record
        nothing and never notice. `curious_grid` is for the first; the second wraps in the other order.
        """
        raise RuntimeError("CuriousServer records through its own start(); for a loop of your own use curious_grid()")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the wrapped strategy returns."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return what the wrapped strategy returns."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return what the wrapped strategy returns."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        self.strategy.summary()


@dataclass(frozen=True)
class _Asked:
    """What a message asked for: `learners` when it names them, and the shapes of the arrays that it sent."""

    round: int
    sent: str
    size: int
    learners: list[int] | None
    shapes: dict[str, tuple[int, ...]]


class Recorder:
    """Turns the messages of a grid into a record, those of the first `rounds` rounds or all.

    Arrays are looked at in their messages and handed on as they lie there, never copied. A reply that is no arrays,
    or is far larger than what was sent to its learners, is left out with a warning: no stranger fills the disk. So is
    one that answers for other learners than its message asked for, or with other arrays than were sent: it would make
    the round unreadable. To refuse it is the strategy's right. A second answer of a learner is not recorded.
    """

    def __init__(self, writer: RecordWriter, rounds: int | None = None) -> None:
        self._writer = writer
        self._rounds = rounds
        self._open: dict[str, _Asked] = {}
        self._recorded: dict[int, set[int]] = {}
        self._last: tuple[int, list[ArrayRecord], str] | None = None
        self._nodes: dict[int, int] = {}
        self._round = 0

    def watch(self, grid: Grid) -> WatchedGrid:
        """Return a grid that passes everything on and records it."""
        return WatchedGrid(grid, sent=self._sent, received=self._received)

    def close(self) -> None:
        """Complete the index."""
        self._writer.flush()

    def _sent(self, message: Message) -> None:
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return
        records = message.content.array_records
        if not records:
            return
        if not self._open:
            self._round += 1
        round = _declared_round(message) or self._round
        if self._rounds is not None and round > self._rounds:
            return
        # All messages of a round usually carry one and the same objects: write them once.
        arrays = list(records.values())
        if self._last is None or self._last[0] != round or not _identical(self._last[1], arrays):
            self._last = (round, arrays, self._writer.sent(round, _named(message)))
        self._open[message.metadata.message_id] = _Asked(
            round,
            self._last[2],
            _size(message),
            _declared_learners(message),
            {name: value.shape for name, value in _named(message).items()},
        )

    def _received(self, reply: Message) -> None:
        asked = self._open.pop(reply.metadata.reply_to_message_id, None)
        if asked is None or reply.has_error() or not reply.content.array_records:
            return
        node = reply.metadata.src_node_id
        try:
            learners = _declared_learners(reply)
            if learners == []:
                return
            if _size(reply) > _LARGEST * len(asked.learners or learners or [0]) * asked.size:
                raise ValueError(f"over {_LARGEST} times as large as what was sent")
            arrays = _named(reply)
            if learners is None and asked.learners is None:
                learners = [self._nodes.setdefault(node, len(self._nodes))]
                arrays = {name: value[np.newaxis] for name, value in arrays.items()}
            learners = learners or []
            if any(value.shape[:1] != (len(learners),) for value in arrays.values()):
                raise ValueError("not stacked by its learner ids")
            if asked.learners is not None:
                if not set(learners) <= set(asked.learners):
                    raise ValueError("not of the learners that were asked")
                if {name: value.shape[1:] for name, value in arrays.items()} != asked.shapes:
                    raise ValueError("not shaped like what was sent")
            known = self._recorded.setdefault(asked.round, set())
            if known & set(learners):
                return
            self._writer.reply(asked.round, learners, str(node), asked.sent, arrays)
            known.update(learners)
            self._forget_rounds_before(asked.round - 1)
        except ValueError as error:
            _LOG.warning("round %d: node %d's reply is not recorded: %s", asked.round, node, error)

    def _forget_rounds_before(self, round: int) -> None:
        """Forget who is recorded in earlier rounds, but for those of which an answer may still come."""
        earlier = [known for known in self._recorded if known < round]
        if earlier:
            awaited = {asked.round for asked in self._open.values()}
            self._recorded = {
                known: who for known, who in self._recorded.items() if known >= round or known in awaited
            }


def curious_grid(grid: Grid, record: str | Path) -> tuple[WatchedGrid, Callable[[], None]]:
    """Return a grid that records what passes, for applications that write their own loop, and what completes it.

    Call the second when the loop has ended; a record that was never completed is still readable.
    """
    recorder = Recorder(RecordWriter(Path(record)))
    return recorder.watch(grid), recorder.close


def _size(message: Message) -> int:
    """Return how many bytes the arrays of a message take, at least what a header takes."""
    records = message.content.array_records.values()
    return max(1024, sum(len(array.data) for record in records for array in record.values()))


def _named(message: Message) -> Arrays:
    """Return a message's arrays by name; with several array records, as `<record>/<name>`."""
    records = message.content.array_records
    return {
        name if len(records) == 1 else f"{key}/{name}": view(array)
        for key, record in records.items()
        for name, array in record.items()
    }


def _identical(left: list[ArrayRecord], right: list[ArrayRecord]) -> bool:
    return len(left) == len(right) and all(one is other for one, other in zip(left, right, strict=True))


def _declared_round(message: Message) -> int | None:
    for config in message.content.config_records.values():
        value = config.get("server-round")
        if isinstance(value, int):
            return value
    return None


def _declared_learners(reply: Message) -> list[int] | None:
    for config in reply.content.config_records.values():
        value = config.get("learner-ids")
        if isinstance(value, list):
            numbers = [number for number in value if type(number) is int]
            if len(numbers) != len(value):
                raise ValueError("learner ids that are not whole numbers")
            return numbers
    return None
