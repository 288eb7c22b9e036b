"""The curious server: a plug-in that records every reply that a Flower strategy receives."""

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, overload

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.server import ClientManager
from flwr.server.strategy import Strategy as FlowerClassicStrategy
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from metaleak.clients.wire.flower_private import (
    ClientProxy,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
)
from metaleak.server.curious.passing import Failure, received_results, sent_instructions
from metaleak.server.curious.recorder import LARGEST_REPLY, Recorder
from metaleak.server.curious.watched_grid import WatchedGrid
from metaleak.server.record.layout import Holds
from metaleak.server.record.writer import RecordWriter


class CuriousServer:
    """Wraps any Flower strategy and records what passes, before aggregation; changes nothing that passes.

    >>> strategy = CuriousServer(FedAvg(), "runs/mine/record")          # doctest: +SKIP
    >>> strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)  # doctest: +SKIP

    What it makes is a strategy of the same interface as the wrapped one, whose own methods and attributes stay
    reachable: a `CuriousStrategy` for one that has a `start`, as those of `flwr.serverapp.strategy`, and a
    `CuriousClassicStrategy` for one with `configure_fit` and `aggregate_fit`, as those of `flwr.server.strategy`.

    Training messages and their replies are recorded; a reply that is an error is not (it has no arrays). With
    `rounds`, only the first so many are recorded: a long training fills a disk. `holds` says what the replies hold,
    for whoever reads the record: `gradient`, `delta` (weights after local training minus those that were sent) or
    `weights`.

    A reply that names its learners in the entry `learner-ids` of its config record `config` holds their arrays
    stacked. Any other is one learner's: the one whose number it states in its metrics or config, under `identity`
    or, where none is given, under one of `partition-id`, `partition_id`, `client-id`, `client_id`, `cid`. Where it
    states none, or none that can be (see `Numbering`), the learner is its node, numbered by order of arrival.

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

    strategy: Any
    _recorder: Recorder

    @overload
    def __new__(
        cls,
        strategy: FlowerStrategy,
        record: str | Path | RecordWriter,
        rounds: int | None = ...,
        *,
        message_type: str = ...,
        largest_reply: int = ...,
        must_record: bool = ...,
        holds: Holds | None = ...,
        identity: str | None = ...,
    ) -> "CuriousStrategy": ...

    @overload
    def __new__(
        cls,
        strategy: FlowerClassicStrategy,
        record: str | Path | RecordWriter,
        rounds: int | None = ...,
        *,
        message_type: str = ...,
        largest_reply: int = ...,
        must_record: bool = ...,
        holds: Holds | None = ...,
        identity: str | None = ...,
    ) -> "CuriousClassicStrategy": ...

    def __new__(
        cls,
        strategy: Any,
        record: str | Path | RecordWriter,
        rounds: int | None = None,
        *,
        message_type: str = MessageType.TRAIN,
        largest_reply: int = LARGEST_REPLY,
        must_record: bool = False,
        holds: Holds | None = None,
        identity: str | None = None,
    ) -> "CuriousServer":
        """Return the strategy that wraps `strategy`; see the class."""
        if isinstance(strategy, type):
            raise TypeError(f"strategy must be an instance such as {strategy.__name__}(), got the class")
        if _has(strategy, "start"):
            made: CuriousServer = object.__new__(CuriousStrategy)
        elif not _has(strategy, "configure_fit", "aggregate_fit"):
            raise TypeError(
                "strategy must be one of flwr.serverapp.strategy or flwr.server.strategy, or like it, "
                f"got a {type(strategy).__name__}; for a loop of your own use curious_grid()"
            )
        elif message_type != MessageType.TRAIN:
            raise ValueError(f"message_type is 'train' for a strategy of flwr.server, got {message_type!r}")
        else:
            made = object.__new__(CuriousClassicStrategy)
        recorder = Recorder(
            record,
            rounds,
            message_type=message_type,
            largest_reply=largest_reply,
            must_record=must_record,
            holds=holds,
            identity=identity,
        )
        made.__dict__.update(strategy=strategy, _recorder=recorder)
        if isinstance(made, CuriousClassicStrategy):
            # It is never told that its last round was the last.
            weakref.finalize(made, recorder.close_if_open)
        return made

    @property
    def record(self) -> Path | None:
        """Where the record is, also when it is complete; `None` as long as no message went out."""
        return self._recorder.path

    def __getattr__(self, name: str) -> Any:
        """Return the wrapped strategy's attribute."""
        if name.startswith("__") or "strategy" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.strategy, name)

    def __setattr__(self, name: str, value: object) -> None:
        """Set the wrapped strategy's attribute: nothing else would look at it."""
        setattr(self.strategy, name, value)


class CuriousStrategy(CuriousServer, FlowerStrategy):
    """What `CuriousServer` makes of a strategy that runs its rounds itself, in its `start`."""

    strategy: FlowerStrategy

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


class CuriousClassicStrategy(CuriousServer, FlowerClassicStrategy):
    """What `CuriousServer` makes of a strategy that Flower's server or workflow asks what to do, round by round.

    Its parameters are a list of arrays without names: in the record they are called `0`, `1` and so on, in the order
    of the list. Replies are recorded when `aggregate_fit` gets them, before the wrapped strategy does. A record is
    complete after each round; a second run, which asks for initial parameters again, has a record of its own.
    """

    strategy: FlowerClassicStrategy

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Return what the wrapped strategy returns."""
        self._recorder.close_if_open()
        return self.strategy.initialize_parameters(client_manager=client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Return what the wrapped strategy returns, and take note of it."""
        instructions = self.strategy.configure_fit(
            server_round=server_round, parameters=parameters, client_manager=client_manager
        )
        self._recorder.sent(sent_instructions(server_round, instructions))
        return instructions

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[Failure[FitRes]]
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Record what has arrived and return what the wrapped strategy returns."""
        self._recorder.received(received_results(server_round, results, failures))
        return self.strategy.aggregate_fit(server_round, results, failures)

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Return what the wrapped strategy returns."""
        return self.strategy.configure_evaluate(
            server_round=server_round, parameters=parameters, client_manager=client_manager
        )

    def aggregate_evaluate(
        self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]], failures: list[Failure[EvaluateRes]]
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Return what the wrapped strategy returns."""
        return self.strategy.aggregate_evaluate(server_round, results, failures)

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, dict[str, Scalar]] | None:
        """Return what the wrapped strategy returns."""
        return self.strategy.evaluate(server_round, parameters=parameters)


def curious_grid(
    grid: Grid,
    record: str | Path,
    rounds: int | None = None,
    *,
    message_type: str = MessageType.TRAIN,
    largest_reply: int = LARGEST_REPLY,
    holds: Holds | None = None,
    identity: str | None = None,
) -> tuple[WatchedGrid, Callable[[], None]]:
    """Return a grid that records what passes, for applications that write their own loop, and what completes it.

    Call the second when the loop has ended; a record that was never completed is still readable. The arguments are
    those of `CuriousServer`, and nothing is ever raised into the loop either.
    """
    recorder = Recorder(
        record, rounds, message_type=message_type, largest_reply=largest_reply, holds=holds, identity=identity
    )
    return recorder.watch(grid), recorder.close


def _has(strategy: object, *methods: str) -> bool:
    return all(callable(getattr(strategy, method, None)) for method in methods)
