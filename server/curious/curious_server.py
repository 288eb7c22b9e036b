"""The curious server: a plug-in that records every reply that a Flower strategy receives."""

from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from metaleak.server.curious.recorder import LARGEST_REPLY, Recorder
from metaleak.server.curious.watched_grid import WatchedGrid
from metaleak.server.record.writer import RecordWriter


class CuriousServer(Strategy):
    """Wraps any Flower strategy and records what passes, before aggregation; changes nothing that passes.

    >>> strategy = CuriousServer(FedAvg(), "runs/mine/record")          # doctest: +SKIP
    >>> strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)  # doctest: +SKIP

    Training messages and their replies are recorded; a reply that is an error is not (it has no arrays). A reply that
    names its learners in the entry `learner-ids` of its config record `config` holds their arrays stacked; any other
    is taken as one learner, whose number is that of its node in order of appearance. With `rounds`, only the first so
    many are recorded: a long training fills a disk.

    `record` is where the record is made when the first message goes out; where there is something already, the new
    one is made beside it, as `<name>-2` and so on, and Flower's log says where. It may also be a writer, such as one
    that works in the background. `message_type` are the messages that are recorded, such as `train` or
    `query.embeddings`, with its subtypes; answers of other types are counted, in one line at the end. A reply of more
    than `largest_reply` bytes, which is also more than 16 times what was sent, is left out: raise it where a node
    answers for many learners at once.

    What cannot be recorded is left out with a warning. A disk that is full ends the recording and not the training,
    but with `must_record` the training, too. Raises `TypeError` for what is no strategy, and `ValueError` for
    settings that cannot be.

    An application that writes its own loop uses the other door, `curious_grid`.
    """

    def __init__(
        self,
        strategy: Strategy,
        record: str | Path | RecordWriter,
        rounds: int | None = None,
        *,
        message_type: str = MessageType.TRAIN,
        largest_reply: int = LARGEST_REPLY,
        must_record: bool = False,
    ) -> None:
        if isinstance(strategy, type):
            raise TypeError(f"strategy must be an instance such as {strategy.__name__}(), got the class")
        if not callable(getattr(strategy, "start", None)):
            raise TypeError(
                f"strategy must be one of flwr.serverapp.strategy or like it, got a {type(strategy).__name__}; "
                "for a loop of your own use curious_grid()"
            )
        self.strategy = strategy
        self._recorder = Recorder(
            record, rounds, message_type=message_type, largest_reply=largest_reply, must_record=must_record
        )

    @property
    def record(self) -> Path | None:
        """Where the record is, also when it is complete; `None` as long as no message went out."""
        return self._recorder.path

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


def curious_grid(
    grid: Grid,
    record: str | Path,
    rounds: int | None = None,
    *,
    message_type: str = MessageType.TRAIN,
    largest_reply: int = LARGEST_REPLY,
) -> tuple[WatchedGrid, Callable[[], None]]:
    """Return a grid that records what passes, for applications that write their own loop, and what completes it.

    Call the second when the loop has ended; a record that was never completed is still readable. The arguments are
    those of `CuriousServer`, and nothing is ever raised into the loop either.
    """
    recorder = Recorder(record, rounds, message_type=message_type, largest_reply=largest_reply)
    return recorder.watch(grid), recorder.close
