"""The replies of one round: their mean, and which learners are missing for which reason."""

import logging
from collections import Counter
from collections.abc import Mapping

import numpy as np
from flwr.app import Message

from metaleak.clients.wire.answer import Answer, Refused, in_one_line, read_answer
from metaleak.clients.wire.arrays import Arrays, ArrayTypes
from metaleak.clients.wire.finite import finite_rows, row_norms
from metaleak.clients.wire.tree_sum import TreeSum, tree_nodes
from metaleak.server.learning.shares import Share

_LOG = logging.getLogger("metaleak")


class RoundFailed(RuntimeError):
    """Raised when a round has no result to train with; the message is one line with the first reason."""


class Gathered:
    """Checks and adds up the replies of one round.

    `kinds` are the types and shapes of the parameters that were sent, by name. A learner whose gradient has an L2
    norm above `largest_norm`, over all parameters together, is refused. With `summed` the messages asked for partial
    sums. `counts` has the number of `learners` whose replies were added, and by kind the number of those missing;
    `heard` lists the former in the order of arrival.
    """

    def __init__(
        self, round: int, kinds: ArrayTypes, largest_norm: float | None = None, summed: bool = False
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.heard: list[int] = []
        self._round = round
        self._kinds = kinds
        self._largest_norm = largest_norm
        self._summed = summed
        self._sum = TreeSum()
        self._reason = ""

    def take(self, share: Share, reply: Message | None) -> None:
        """Check a share's reply, add the usable gradients and count the learners that are missing."""
        try:
            answer = self._answer(share, reply)
        except Refused as refused:
            self._complain("refused", len(share.learners), f"learners {_span(share)}: {refused}")
            answer = None
        if answer is None:
            self._sum.add(share.first, len(share.learners), [], {})
            return
        for number, (kind, reason) in answer.missing.items():
            if kind in ("failed", "refused"):
                self._complain(kind, 1, f"learner {number}: {reason}")
            else:
                self.counts[kind] += 1
        rows = self._added(share, answer)
        self.counts["learners"] += len(rows)
        self.heard += [share.learners[row] for row in rows]

    def _added(self, share: Share, answer: Answer) -> list[int]:
        """Add the usable gradients of an answer; return the offsets of their learners."""
        rows, gradients = answer.rows, answer.gradients
        if answer.summed:
            if self._sum.add_parts(share.first, len(share.learners), gradients):
                return rows
            self._complain("refused", len(rows), f"learners {_span(share)}: their sum is not finite")
            self._sum.add(share.first, len(share.learners), [], {})
            return []
        if self._largest_norm is not None:
            norms = row_norms(gradients, len(rows))
            reasons = {
                place: f"its norm {norms[place]:.3g} is above server.largest_norm {self._largest_norm:g}"
                for place in np.flatnonzero(norms > self._largest_norm).tolist()
            }
            rows, gradients = self._without(share, rows, gradients, reasons)
        if not self._sum.add(share.first, len(share.learners), rows, gradients):
            infinite = np.flatnonzero(~finite_rows(gradients, len(rows))).tolist()
            reasons = dict.fromkeys(infinite, "has entries that are not finite")
            rows, gradients = self._without(share, rows, gradients, reasons)
            if not self._sum.add(share.first, len(share.learners), rows, gradients):
                # Finite one by one: only float64 can be so large.
                self._complain("refused", len(rows), f"learners {_span(share)}: their sum is not finite")
                self._sum.add(share.first, len(share.learners), [], {})
                return []
        return rows

    def mean(self) -> dict[str, np.ndarray]:
        """Return the mean meta-gradient in float64; empty when all learners were absent by simulated faults.

        Raises `RoundFailed` when no learner answered and there was an error.
        """
        total = self._sum.total()
        if self.counts["learners"]:
            return {name: value / self.counts["learners"] for name, value in total.items()}
        if self._reason:
            raise RoundFailed(f"round {self._round}: no learner answered ({in_one_line(self._reason)})")
        return {}

    def _answer(self, share: Share, reply: Message | None) -> Answer | None:
        if reply is None:
            self._complain("late", len(share.learners), f"learners {_span(share)}: no reply in time")
            return None
        if reply.has_error():
            # Ray puts the client's own words last, after its traceback.
            lines = [line for line in str(reply.error.reason).splitlines() if line.strip()]
            reason = (lines or ["no reason given"])[-1]
            self._complain("failed", len(share.learners), f"learners {_span(share)}: {reason}")
            return None
        parts = len(tree_nodes(share.first, len(share.learners))) if self._summed else None
        return read_answer(reply.content, share.learners, self._kinds, parts=parts)

    def _without(
        self, share: Share, rows: list[int], gradients: Arrays, reasons: Mapping[int, str]
    ) -> tuple[list[int], Arrays]:
        """Return the rows without those at the places of `reasons`, which are refused."""
        if not reasons:
            return rows, gradients
        for place, reason in reasons.items():
            self._complain("refused", 1, f"learner {share.learners[rows[place]]}: {reason}")
        kept = [place for place in range(len(rows)) if place not in reasons]
        return [rows[place] for place in kept], {name: value[kept] for name, value in gradients.items()}

    def _complain(self, kind: str, learners: int, reason: str) -> None:
        self.counts[kind] += learners
        self._reason = self._reason or reason
        _LOG.warning("round %d: %s: %s", self._round, kind, in_one_line(reason))


def _span(share: Share) -> str:
    """Return a share's learners as short text, such as `3 to 9`."""
    first, last = share.learners[0], share.learners[-1]
    return str(first) if first == last else f"{first} to {last}"
