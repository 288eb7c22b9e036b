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
    """Wraps any Flower strategy and records its messages and replies before aggregation, without changing them.

    >>> strategy = CuriousServer(FedAvg(), "runs/mine/record")          # doctest: +SKIP
    >>> strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)  # doctest: +SKIP

    The result is a strategy with the same interface as the wrapped one, whose own methods and attributes can still be
    used: a `CuriousStrategy` for one with a `start`, such as those of `flwr.serverapp.strategy`, and a
    `CuriousClassicStrategy` for one with `configure_fit` and `aggregate_fit`, such as those of
    `flwr.server.strategy`. An application that writes its own loop uses `curious_grid` instead.

    A reply that names its learners in the entry `learner-ids` of its config record `config` holds their arrays
    stacked. Any other reply belongs to one learner: the one whose number it states in its metrics or config. Where it
    states no usable number (see `Numbering`), its node counts as the learner, and nodes are numbered in the order in
    which they first answer. A reply that is an error has no arrays and is not recorded.
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
        """Return the strategy that wraps `strategy`.

        Args:
            strategy: The strategy to wrap.
            record: Where to make the record when the first message is sent. If the path exists, the record is made
                beside it, as `<name>-2` and so on, and Flower's log shows where. May also be a `RecordWriter`, such
                as one that writes in the background.
            rounds: How many rounds to record, from the first on; `None` records all of them.
            message_type: The type of the messages that are recorded, with its subtypes, such as `train` or
                `query.embeddings`. Replies to messages of other types are counted in one line at the end.
            largest_reply: In bytes. A reply that is larger than this and than 16 times what was sent is left out;
                raise it where a node answers for many learners at once.
            must_record: Whether a full disk ends the training. By default it ends only the recording, and anything
                else that cannot be recorded is left out with a warning.
            holds: What the replies hold, for whoever reads the record: `gradient`, `delta` (weights after local
                training minus those that were sent), `weights`, or `None` where that is not known.
            identity: The name under which replies state their learner's number; by default one of `partition-id`,
                `partition_id`, `client-id`, `client_id` and `cid`.

        Raises:
            TypeError: For an object that is not a strategy.
            ValueError: For a setting that is not allowed.
        """
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
            # Flower does not tell it when the last round is over.
            weakref.finalize(made, recorder.close_if_open)
        return made

    @property
    def record(self) -> Path | None:
        """Where the record is, also after it is complete; `None` before the first message is sent."""
        return self._recorder.path

    def __getattr__(self, name: str) -> Any:
        """Return the wrapped strategy's attribute."""
        if name.startswith("__") or "strategy" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.strategy, name)

    def __setattr__(self, name: str, value: object) -> None:
        """Set the wrapped strategy's attribute, which is the one that is used."""
        setattr(self.strategy, name, value)


class CuriousStrategy(CuriousServer, FlowerStrategy):
    """The result of `CuriousServer` for a strategy that runs its rounds itself, in its `start`."""

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
        """Raise `RuntimeError`, because replies are recorded in `start` only.

        An application with a loop of its own, or another wrapper around this one, would record nothing without
        noticing it. The first should use `curious_grid`; the second should be wrapped by this one instead.
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
    """The result of `CuriousServer` for a strategy whose methods Flower's server or workflow calls in every round.

    Its parameters are a list of arrays without names: in the record they are called `0`, `1` and so on, in the order
    of the list. Replies are recorded in `aggregate_fit`, before the wrapped strategy gets them. The record is
    complete after each round; a second run, which begins by asking for initial parameters, gets a record of its own.
    """

    strategy: FlowerClassicStrategy

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Return what the wrapped strategy returns."""
        self._recorder.close_if_open()
        return self.strategy.initialize_parameters(client_manager=client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Return what the wrapped strategy returns, after noting it for the record."""
        instructions = self.strategy.configure_fit(
            server_round=server_round, parameters=parameters, client_manager=client_manager
        )
        self._recorder.sent(sent_instructions(server_round, instructions))
        return instructions

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[Failure[FitRes]]
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Record the replies and return what the wrapped strategy returns."""
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
    """Return a grid that records its messages, for applications with a loop of their own, and a function to end it.

    Call the function when the loop has ended; a record that was not completed can still be read. The arguments are
    those of `CuriousServer`. Errors in recording never reach the loop.
    """
    recorder = Recorder(
        record, rounds, message_type=message_type, largest_reply=largest_reply, holds=holds, identity=identity
    )
    return recorder.watch(grid), recorder.close


def _has(strategy: object, *methods: str) -> bool:
    return all(callable(getattr(strategy, method, None)) for method in methods)
