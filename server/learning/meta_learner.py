"""The meta-learner: a Flower strategy that averages meta-gradients and takes outer steps."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from metaleak.clients.wire.arrays import array_types
from metaleak.clients.wire.received_array import view
from metaleak.server.learning.checkpoint import Checkpoint
from metaleak.server.learning.dispatch import Dispatch, Patience
from metaleak.server.learning.gathered import Gathered, RoundFailed
from metaleak.server.learning.optimizer import OuterOptimizer, OuterSteps
from metaleak.server.learning.shares import Share, floating_shares, hosted_shares

_FLOWER_LOG = logging.getLogger("flwr")

LARGEST_SHARE = 32 << 20
"""About how many bytes of gradients one reply holds, since there are several at once. One chunk may be larger."""

_FEWEST, _MOST = 128, 512
"""The fewest and most learners in one message where there are more than enough for every node: each message takes
time, and the round waits for the last one. Gradients that a node adds up, or writes to a file, hardly take memory.
"""


@dataclass(frozen=True)
class RoundReport:
    """The result of one round.

    Of the learners that were asked, `learners` is the number that answered; the others `dropped` out, were `late`,
    `failed`, or their replies were `refused`. `seconds` is the time from sampling to the outer step, and `checkpoint`
    the state after it. `sent` are the parameters that were sent, `heard` the learners that answered, ascending, and
    `mean` their mean meta-gradient in float64, empty when there were none.
    """

    round: int
    learners: int
    dropped: int
    late: int
    failed: int
    refused: int
    seconds: float
    checkpoint: Checkpoint
    sent: ArrayRecord
    heard: tuple[int, ...]
    mean: Mapping[str, np.ndarray]

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The parameters after the outer step."""
        return self.checkpoint.parameters


class MetaLearner(Strategy):
    """Samples learners each round, sends them the parameters, and steps along their mean meta-gradient.

    Each reply is checked, added to the sum and dropped when it arrives.

    Args:
        learners: The size of the federation.
        fraction: The part of the federation that is sampled each round, at least one learner.
        optimizer: The outer optimizer; by default Adam.
        seed: The sample of a round depends on `seed` and the round only.
        chunk: How many learners are computed at once. Chunks are cut by learner and never by node, so that the
            numbers do not depend on how many nodes there are.
        learners_per_node: With `None` any node computes for any learner. With a number n, node k in the order of node
            ids hosts the n learners from k * n on.
        shares_per_node: About how many messages a node gets per round.
        patience: How long replies are waited for.
        largest_norm: A learner's gradient with a larger L2 norm, over all parameters together, is refused.
        least_learners: A round with fewer replies ends in `RoundFailed`, before its mean is used.
        single_rounds: In this many rounds, from the first on (`None`: in all), replies hold each learner's gradient,
            as a recorder needs. In later rounds nodes answer with partial sums, which give the same mean bit for bit,
            unless a `largest_norm` has to be checked.
        resume_from: A checkpoint to continue after.
        on_round: Called after every round with its report.
    """

    def __init__(
        self,
        learners: int,
        *,
        fraction: float = 1.0,
        optimizer: OuterOptimizer | None = None,
        seed: int = 0,
        chunk: int = 16,
        learners_per_node: int | None = None,
        shares_per_node: int = 1,
        patience: Patience | None = None,
        largest_norm: float | None = None,
        least_learners: int = 0,
        single_rounds: int | None = None,
        resume_from: Checkpoint | None = None,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        if (
            learners < 1
            or not 0 < fraction <= 1
            or chunk < 1
            or (learners_per_node is not None and learners_per_node < 1)
        ):
            raise ValueError(
                f"learners {learners}, chunk {chunk} and learners_per_node {learners_per_node} must be >= 1, "
                f"fraction {fraction} in (0, 1]"
            )
        if largest_norm is not None and not 0 < largest_norm < math.inf:
            raise ValueError(f"largest_norm {largest_norm} must be a number > 0, or None for no limit")
        self.learners = learners
        self.fraction = fraction
        self.seed = seed
        self.chunk = chunk
        self.learners_per_node = learners_per_node
        self.shares_per_node = shares_per_node
        self.largest_norm = largest_norm
        self.least_learners = least_learners
        self.single_rounds = single_rounds
        self._hosts: list[int] = []
        self._optimizer = optimizer or OuterOptimizer()
        self._patience = patience
        self._resume_from = resume_from
        self._on_round = on_round

    def sample(self, round: int) -> list[int]:
        """Return the learners of `round`, ascending."""
        size = sample_size(self.learners, self.fraction)
        generator = np.random.default_rng([self.seed, round])
        return sorted(generator.choice(self.learners, size=size, replace=False).tolist())

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
        """Run the rounds up to `num_rounds` and return the last parameters; `timeout` is a round's, in seconds.

        `train_config` is sent to the nodes; `evaluate_fn` is called after each round. Nodes do not evaluate.
        Raises `RoundFailed` when no learner of a round answered, unless all were absent by simulated faults, and when
        a round's mean makes a parameter or the optimizer's state infinite; the last checkpoint stays usable.
        """
        result = Result(arrays=initial_arrays)
        steps, done = self._steps(initial_arrays)
        dispatch = Dispatch(self._patience or Patience(round=timeout))
        if self._resume_from is not None:
            result.arrays = _record(steps.parameters)
        self.summary()
        for round in range(done + 1, num_rounds + 1):
            result.arrays, result.train_metrics_clientapp[round] = self._round(
                round, dispatch, grid, result.arrays, train_config or ConfigRecord(), steps
            )
            if evaluate_fn is not None and (measured := evaluate_fn(round, result.arrays)) is not None:
                result.evaluate_metrics_serverapp[round] = measured
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raise `RuntimeError`: rounds run only in `start`, which adds up replies as they arrive."""
        raise RuntimeError("MetaLearner streams its replies and runs rounds only in its own start()")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raise `RuntimeError`, see `configure_train`."""
        raise RuntimeError("MetaLearner streams its replies and runs rounds only in its own start()")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no message: evaluation needs held-out tasks, which only the server has."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing, see `configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Log what the strategy does."""
        size = len(self.sample(1))
        _FLOWER_LOG.info("MetaLearner: %d of %d learners a round, %s", size, self.learners, self._optimizer)

    def _steps(self, initial: ArrayRecord) -> tuple[OuterSteps, int]:
        """Return the optimizer with its state, and the number of rounds that are done."""
        if self._resume_from is not None:
            # In the order of the model: a defense draws its noise in the order in which it meets the parameters.
            steps = self._optimizer.over({name: self._resume_from.parameters[name] for name in initial})
            steps.restore(self._resume_from.optimizer)
            return steps, self._resume_from.round
        parameters = {name: torch.from_numpy(array.numpy().copy()) for name, array in initial.items()}
        return self._optimizer.over(parameters), 0

    def _round(
        self, round: int, dispatch: Dispatch, grid: Grid, arrays: ArrayRecord, config: ConfigRecord, steps: OuterSteps
    ) -> tuple[ArrayRecord, MetricRecord]:
        started = time.monotonic()
        sampled = self.sample(round)
        size = sum(value.numel() * value.element_size() for value in steps.parameters.values())
        summed = self.largest_norm is None and self.single_rounds is not None and round > self.single_rounds
        nodes, shares = self._shares(grid, sampled, 0 if summed else size)

        def ask(share: Share, node: int, ttl: float) -> Message:
            told = ConfigRecord(
                {**config, "server-round": round, "learner-ids": list(share.learners), "chunk": self.chunk}
            )
            if summed:
                told["sum-from"] = share.first
            content = RecordDict({"arrays": arrays, "config": told})
            return Message(content, dst_node_id=node, message_type=MessageType.TRAIN, ttl=ttl)

        kinds = array_types({name: view(array) for name, array in arrays.items()})
        gathered = Gathered(round, kinds, self.largest_norm, summed)
        for share, reply in dispatch.answers(grid, nodes, shares, ask):
            gathered.take(share, reply)
        if gathered.counts["learners"] < self.least_learners:
            raise RoundFailed(
                f"round {round}: {gathered.counts['learners']} learners answered, and a guarantee rests on the noise "
                f"of {self.least_learners}; nothing is recorded of the round"
            )
        mean = gathered.mean()
        if mean:
            try:
                steps.step(mean)
            except ValueError as error:
                norm = math.sqrt(sum(float(np.square(value).sum()) for value in mean.values()))
                raise RoundFailed(
                    f"round {round}: {error}, the mean meta-gradient has the norm {norm:.3g}; "
                    "server.largest_norm refuses replies that are too large"
                ) from None
        checkpoint = Checkpoint(round, steps.parameters, steps.state())
        counts = {kind: gathered.counts[kind] for kind in ("learners", "dropped", "late", "failed", "refused")}
        if self._on_round is not None:
            self._on_round(
                RoundReport(
                    round=round,
                    seconds=time.monotonic() - started,
                    checkpoint=checkpoint,
                    sent=arrays,
                    heard=tuple(sorted(gathered.heard)),
                    mean=mean,
                    **counts,
                )
            )
        return _record(checkpoint.parameters), MetricRecord(dict(counts))

    def _shares(self, grid: Grid, sampled: Sequence[int], size: int) -> tuple[list[int], list[Share]]:
        """Return the nodes and the shares of a round whose replies have `size` bytes a learner; wait for nodes."""
        if self._hosts and self.learners_per_node is not None:
            return self._hosts, hosted_shares(sampled, self.learners_per_node)
        needed = -(-self.learners // self.learners_per_node) if self.learners_per_node else 1
        deadline = time.monotonic() + 60.0
        while len(nodes := sorted(grid.get_node_ids())) < needed:
            if time.monotonic() > deadline:
                raise RoundFailed(f"{len(nodes)} Flower nodes have connected within 60 s, {needed} are needed")
            time.sleep(0.1)
        if self.learners_per_node is not None:
            # Who hosts whom is settled once: a node that leaves takes its learners with it and moves no other's.
            self._hosts = nodes
            return nodes, hosted_shares(sampled, self.learners_per_node)
        most = min(max(_FEWEST, len(sampled) // (8 * len(nodes))), _MOST, max(1, LARGEST_SHARE // max(1, size)))
        return nodes, floating_shares(sampled, self.shares_per_node * len(nodes), self.chunk, most)


def sample_size(learners: int, fraction: float) -> int:
    """Return how many of `learners` a round samples: the `fraction` of them, halves rounded up, at least one."""
    return max(1, int(fraction * learners + 0.5))


def _record(parameters: dict[str, torch.Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(value.detach().numpy()) for name, value in parameters.items()})
