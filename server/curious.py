"""The curious server: a plug-in that records every reply that a Flower strategy receives."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from metaleak.server.record import Arrays, RecordWriter
from metaleak.server.watched_grid import WatchedGrid

_LOG = logging.getLogger("metaleak")


class CuriousServer(Strategy):
    """Wraps any Flower strategy and records what passes, before aggregation; changes nothing that passes.

    >>> strategy = CuriousServer(FedAvg(), "runs/mine/record")          # doctest: +SKIP
    >>> strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)  # doctest: +SKIP

    Training messages and their replies are recorded; a reply that is an error is not (it has no arrays). A reply that
    names its learners in a config entry `learner-ids` holds their arrays stacked; any other is taken as one learner,
    whose number is that of its node in order of appearance. With `rounds`, only the first so many are recorded: a
    long training fills a disk. Raises `RecordError` when there is a record already.

    An application that writes its own loop uses the other door, `curious_grid`.
    """

    def __init__(self, strategy: Strategy, record: str | Path, rounds: int | None = None) -> None:
        self.strategy = strategy
        self._recorder = Recorder(RecordWriter(Path(record)), rounds)

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


class Recorder:
    """Turns the messages of a grid into a record, those of the first `rounds` rounds or all."""

    def __init__(self, writer: RecordWriter, rounds: int | None = None) -> None:
        self._writer = writer
        self._rounds = rounds
        self._open: dict[str, tuple[int, str]] = {}
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
        self._open[message.metadata.message_id] = (round, self._last[2])

    def _received(self, reply: Message) -> None:
        round, sent = self._open.pop(reply.metadata.reply_to_message_id, (0, ""))
        if not sent or reply.has_error():
            return
        arrays = _named(reply)
        if not arrays:
            return
        node = reply.metadata.src_node_id
        learners = _declared_learners(reply)
        if learners is None:
            learners = [self._nodes.setdefault(node, len(self._nodes))]
            arrays = {name: value[np.newaxis] for name, value in arrays.items()}
        if not learners or any(value.shape[:1] != (len(learners),) for value in arrays.values()):
            # To refuse a reply is the strategy's right, not the observer's.
            _LOG.warning(
                "round %d: node %d's reply is not stacked by its learner ids and was not recorded", round, node
            )
            return
        self._writer.reply(round, learners, str(node), sent, arrays)


def curious_grid(grid: Grid, record: str | Path) -> tuple[WatchedGrid, Callable[[], None]]:
    """Return a grid that records what passes, for applications that write their own loop, and what completes it.

    Call the second when the loop has ended; a record that was never completed is still readable.
    """
    recorder = Recorder(RecordWriter(Path(record)))
    return recorder.watch(grid), recorder.close


def _named(message: Message) -> Arrays:
    """Return a message's arrays by name; with several array records, as `<record>/<name>`."""
    records = message.content.array_records
    return {
        name if len(records) == 1 else f"{key}/{name}": array.numpy()
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
            return [int(number) for number in value]
    return None
