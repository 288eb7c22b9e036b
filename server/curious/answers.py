"""Messages and their replies, in the form in which they are recorded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from metaleak.clients.wire.answer import Refused, array_bytes, learner_ids, read_answer, views_by_name
from metaleak.clients.wire.arrays import Arrays, ArrayTypes
from metaleak.clients.wire.finite import finite_rows
from metaleak.server.curious.arriving import ArrivedFile, arrived_file
from metaleak.server.curious.numbering import Numbering
from metaleak.server.curious.passing import Received
from metaleak.server.record.statements import METRICS_LIMIT, Statements, Value, recordable_columns

_TIMES = 16


@dataclass(frozen=True)
class SentArrays:
    """Arrays that were sent: their file in the record, and what replies to them are compared with.

    `infinite` names the arrays that already had infinite entries or NaN, such as a mask among a network's buffers.
    """

    name: str
    records: frozenset[str]
    kinds: ArrayTypes
    size: int
    infinite: frozenset[str]


@dataclass(frozen=True)
class Asked:
    """A message that awaits its reply: `learners` if it names them; `turn` counts the rounds that have begun."""

    round: int
    turn: int
    sent: SentArrays
    learners: tuple[int, ...] | None
    config: Statements


@dataclass(frozen=True)
class Answered:
    """The content of a reply: the arrays and metrics of `learners`, row for row.

    `file` is the file that holds exactly these arrays, if they arrived in one.
    """

    learners: list[int]
    arrays: Arrays
    metrics: dict[str, list[Value]]
    file: ArrivedFile | None = None

    def only(self, rows: list[int]) -> "Answered":
        """Return the content for the learners in these rows."""
        return Answered(
            [self.learners[row] for row in rows],
            {name: value[rows] for name, value in self.arrays.items()},
            {name: [column[row] for row in rows] for name, column in self.metrics.items()},
        )


class AnswerReader:
    """Reads replies, to messages that name their learners and to others, whose learners `numbering` numbers.

    Where the message named no learners, a reply is refused if it is larger than both `largest_reply` bytes and 16
    times what was sent. `warn` is called with the kind of a warning and the warning.
    """

    def __init__(self, numbering: Numbering, largest_reply: int, warn: Callable[[str, str], None]) -> None:
        self._numbering = numbering
        self._largest_reply = largest_reply
        self._warn = warn

    def read(self, reply: Received, asked: Asked, known: Mapping[int, str]) -> Answered:
        """Return the content of a reply that has arrays; raises `Refused`.

        `known` are the learners that have answered in the round so far, each with its node.
        """
        sent, content, stated, node = asked.sent, reply.content, reply.stated, reply.node
        if content is None:
            raise Refused("an error")
        if asked.learners is not None:
            answer = read_answer(content, asked.learners, sent.kinds, sent.records)
            learners = [asked.learners[row] for row in answer.rows]
            metrics = self._metrics(stated, len(learners), stacked=True)
            return Answered(learners, answer.gradients, metrics, arrived_file(content))
        if array_bytes(content) > max(self._largest_reply, _TIMES * sent.size):
            raise Refused(
                f"larger than {_TIMES} times what was sent and than largest_reply, {self._largest_reply} bytes"
            )
        named, arrays = learner_ids(content), views_by_name(content)
        if named is None:
            learner, reason = self._numbering.number(node, stated, known)
            if reason:
                self._warn(reason, f"round {asked.round}: node {node} {reason}: its number is that of its arrival")
            stacked = {name: value[np.newaxis] for name, value in arrays.items()}
            return Answered([learner], stacked, self._metrics(stated, 1, stacked=False))
        if any(value.shape[:1] != (len(named),) for value in arrays.values()):
            raise Refused("not stacked by its learner ids")
        self._numbering.claim(node, named)
        return Answered(named, arrays, self._metrics(stated, len(named), stacked=True))

    def _metrics(self, stated: Mapping[str, object], rows: int, *, stacked: bool) -> dict[str, list[Value]]:
        metrics, left_out = recordable_columns(stated, METRICS_LIMIT, rows, stacked)
        if left_out:
            self._warn(*not_recorded("replies", left_out))
        return metrics


def finite_answer(answer: Answered, asked: Asked) -> tuple[Answered, list[int]]:
    """Return the content for the learners all of whose entries are finite, and the other learners.

    Arrays that were not finite when they were sent are not checked.
    """
    looked_at = answer.arrays
    if asked.learners is None:
        looked_at = {name: value for name, value in looked_at.items() if name not in asked.sent.infinite}
    good = finite_rows(looked_at, len(answer.learners))
    if good.all():
        return answer, []
    return answer.only(np.flatnonzero(good).tolist()), np.array(answer.learners)[~good].tolist()


def not_recorded(what: str, names: list[str]) -> tuple[str, str]:
    """Return the kind of a warning and the warning that the values under `names` in `what` are not recorded."""
    listed = ", ".join(repr(name) for name in names[:8])
    return f"{what} {listed}", f"not recorded, because of their type or size, are these values of {what}: {listed}"
