"""What a curious server can record under secure aggregation: the mean of every round, and no single reply."""

from typing import TYPE_CHECKING

import numpy as np

from metaleak.clients.wire.received_array import view
from metaleak.server.record.layout import AGGREGATE
from metaleak.server.record.writer import RecordWriter

if TYPE_CHECKING:  # It loads torch, which a recorder does without.
    from metaleak.server.learning.meta_learner import RoundReport


class MeanRecorder:
    """Records the mean meta-gradient of each of the first `rounds` rounds, or of all, in place of the replies.

    This is the ideal functionality of secure aggregation, see `SecureAggregation`: the trusted party reveals the
    mean, in float32, and the learners whose mean it is; nothing else is written. A round in which no learner answered
    has no reply.
    """

    def __init__(self, writer: RecordWriter, rounds: int | None = None) -> None:
        self._writer = writer
        self._rounds = rounds

    def take(self, report: "RoundReport") -> None:
        """Write what the server saw of a finished round, including its index."""
        if not report.heard or (self._rounds is not None and report.round > self._rounds):
            return
        sent = self._writer.sent(report.round, {name: view(array) for name, array in report.sent.items()})
        mean = {name: np.asarray(value, np.float32)[np.newaxis] for name, value in report.mean.items()}
        self._writer.reply(report.round, [AGGREGATE], "secure-aggregation", sent, mean, mean_of=report.heard)
        self._writer.flush()
