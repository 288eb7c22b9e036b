"""The meta-learner: a Flower strategy that averages meta-gradients and takes outer steps."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from logging import INFO, WARNING

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from metaleak.server.optimiser import OuterOptimiser, OuterSteps


class RoundFailed(RuntimeError):
    """No learner of a round answered with a meta-gradient; the message is one line with the first reason."""


@dataclass(frozen=True)
class RoundReport:
    """What one round did: how many `learners` answered, and how many were `refused` or did not answer.

    `parameters` are those after the outer step; `seconds` run from sampling to the outer step.
    """

    round: int
    learners: int
    refused: int
    seconds: float
    parameters: dict[str, torch.Tensor]


class MetaLearner(Strategy):
    """Samples learners each round, sends them the parameters, and steps along their mean meta-gradient.

    `learners` is the size of the federation and `fraction` the part of it that is sampled each round, at least one;
    the sample depends on (`seed`, round) alone. Work is cut into chunks of `chunk` learners, by learner and never by
    node, so that the numbers do not depend on how many nodes there are. The optimiser's state lives as long as the
    strategy. `on_round` is called after every round.
    """

    def __init__(
        self,
        learners: int,
        *,
        fraction: float = 1.0,
        optimiser: OuterOptimiser | None = None,
        seed: int = 0,
        chunk: int = 16,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        if learners < 1 or not 0 < fraction <= 1 or chunk < 1:
            raise ValueError(f"learners {learners} and chunk {chunk} must be >= 1, fraction {fraction} in (0, 1]")
        self.learners = learners
        self.fraction = fraction
        self.seed = seed
        self.chunk = chunk
        self._optimiser = optimiser or OuterOptimiser()
        self._on_round = on_round
        self._parameters: dict[str, torch.Tensor] = {}
        self._steps: OuterSteps | None = None
        self._started = 0.0
        self._asked = 0

    def sample(self, round: int) -> list[int]:
        """Return the learners of `round`, ascending."""
        size = max(1, int(self.fraction * self.learners + 0.5))
        generator = np.random.default_rng([self.seed, round])
        return sorted(generator.choice(self.learners, size=size, replace=False).tolist())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message a node, each with the parameters and the node's share of the round's learners."""
        self._started = time.monotonic()
        if not self._parameters:
            self._start(arrays)
        sampled = self.sample(server_round)
        self._asked = len(sampled)
        chunks = [sampled[start : start + self.chunk] for start in range(0, len(sampled), self.chunk)]
        nodes = self._nodes(grid)
        for node, share in zip(nodes, _shares(chunks, len(nodes)), strict=False):
            numbers = [number for chunk in share for number in chunk]
            if numbers:
                told = ConfigRecord(
                    {
                        **config,
                        "server-round": server_round,
                        "learner-ids": numbers,
                        "chunk": self.chunk,
                    }
                )
                content = RecordDict({"arrays": arrays, "config": told})
                yield Message(content, dst_node_id=node, message_type=MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies' meta-gradients, take one outer step and return the new parameters.

        A reply that is an error, or whose arrays do not fit the parameters, is refused and counted. The sum runs in
        float64 in the order of the learners, whatever the order of arrival. Raises `RoundFailed` if none is left.
        """
        accepted: list[tuple[int, Message]] = []
        reasons: list[str] = []
        for reply in replies:
            reason = self._refusal(reply)
            if reason is None:
                accepted.append((_learner_ids(reply)[0], reply))
            else:
                reasons.append(reason)
                log(WARNING, "round %d: a reply was refused: %s", server_round, reason)
        if not accepted:
            raise RoundFailed(f"round {server_round}: no learner answered ({(reasons or ['no reply in time'])[0]})")
        total = {name: np.zeros(value.shape, dtype=np.float64) for name, value in self._parameters.items()}
        answered = 0
        for _, reply in sorted(accepted, key=lambda pair: pair[0]):
            for name, array in next(iter(reply.content.array_records.values())).items():
                for gradient in array.numpy():
                    total[name] += gradient
            answered += len(_learner_ids(reply))
        self._outer_step({name: value / answered for name, value in total.items()})
        report = RoundReport(
            round=server_round,
            learners=answered,
            refused=self._asked - answered,
            seconds=time.monotonic() - self._started,
            parameters={name: value.detach().clone() for name, value in self._parameters.items()},
        )
        if self._on_round is not None:
            self._on_round(report)
        new = ArrayRecord({name: Array(value.numpy()) for name, value in report.parameters.items()})
        return new, MetricRecord({"learners": answered, "refused": report.refused})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no message: evaluation needs held-out tasks, which no learner has."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing, see `configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Log what the strategy does."""
        size = len(self.sample(1))
        log(INFO, "MetaLearner: %d of %d learners a round, %s", size, self.learners, self._optimiser)

    def _start(self, arrays: ArrayRecord) -> None:
        self._parameters = {
            name: torch.from_numpy(array.numpy().copy()).requires_grad_() for name, array in arrays.items()
        }
        self._steps = self._optimiser.over(list(self._parameters.values()))

    def _nodes(self, grid: Grid) -> list[int]:
        deadline = time.monotonic() + 60.0
        while not (nodes := sorted(grid.get_node_ids())):
            if time.monotonic() > deadline:
                raise RoundFailed("no Flower node has connected within 60 s")
            time.sleep(0.1)
        return nodes

    def _outer_step(self, gradient: dict[str, np.ndarray]) -> None:
        assert self._steps is not None
        for name, parameter in self._parameters.items():
            parameter.grad = torch.from_numpy(gradient[name]).to(parameter.dtype)
        self._steps.step()

    def _refusal(self, reply: Message) -> str | None:
        """Return why a reply cannot be used, in one line, or `None`."""
        if reply.has_error():
            # Ray puts the client's own words last, after its traceback.
            return ([line for line in str(reply.error.reason).splitlines() if line.strip()] or ["no reason given"])[
                -1
            ]
        learners = _learner_ids(reply)
        arrays = next(iter(reply.content.array_records.values()), None)
        if not learners or arrays is None:
            return f"node {reply.metadata.src_node_id} sent no gradient, or no learner ids"
        if set(arrays) != set(self._parameters):
            return f"learners {learners[0]}...: arrays {sorted(arrays)}, expected {sorted(self._parameters)}"
        for name, array in arrays.items():
            expected = (len(learners), *self._parameters[name].shape)
            if tuple(array.shape) != expected:
                return f"learners {learners[0]}...: {name} has shape {tuple(array.shape)}, expected {expected}"
            if not np.isfinite(array.numpy()).all():
                return f"learners {learners[0]}...: {name} has entries that are not finite"
        return None


def _shares(chunks: Sequence[list[int]], nodes: int) -> list[Sequence[list[int]]]:
    """Return `nodes` runs of consecutive chunks, of sizes that differ by at most one."""
    bounds = [len(chunks) * node // nodes for node in range(nodes + 1)]
    return [chunks[start:end] for start, end in pairwise(bounds)]


def _learner_ids(reply: Message) -> list[int]:
    config = reply.content.config_records.get("config")
    value = config.get("learner-ids") if config is not None else None
    return [int(number) for number in value] if isinstance(value, list) else []
