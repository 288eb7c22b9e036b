"""Sending work to nodes and receiving replies in any order; lost or slow work is sent again."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from metaleak.clients.wire.awaiting import at_once, await_replies
from metaleak.clients.wire.flower_private import ErrorCode
from metaleak.server.learning.shares import Share

_SHORTEST, _LONGEST = 0.005, 0.5
"""Bounds in seconds on the polling interval for replies, which is a twentieth of the time since the last reply. On
Flower's deployment engine every poll is a request to the SuperLink.
"""
_APP_ERRORS = (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.LOAD_CLIENT_APP_EXCEPTION)

IN_FLIGHT = 64
"""The default limit on messages that await a reply; higher if a grid needs more to keep its processes busy."""

Ask = Callable[[Share, int, float], Message]
"""Creates the message for a share and a node, with a time to live in seconds."""


@dataclass(frozen=True)
class Patience:
    """How long the server waits for a reply, and when it sends a request again; all times in seconds.

    A round ends `round` seconds after its start. After an error raised by the app itself, a share is retried once;
    the work of a lost node is retried for `recovery` seconds. A share is requested again when it has taken longer
    than both `slow` seconds and five times the slowest share of this and the last round (before the first reply:
    longer than `recovery` seconds), and again after each doubling of that time. The first reply counts.
    """

    round: float = 3600.0
    recovery: float = 300.0
    slow: float = 10.0


@dataclass
class _Work:
    """A share in progress: its messages that await a reply, each with its node, and its errors so far."""

    share: Share
    out: dict[str, int] = field(default_factory=dict)
    asked: float = 0.0
    tried: list[int] = field(default_factory=list)
    failed: float | None = None
    lost: bool = False
    not_before: float = 0.0
    error: Message | None = None


class Dispatch:
    """Distributes the shares of each round to the nodes of a grid.

    A node has at most one message at a time or, if it hosts learners, all messages for these. At most `in_flight`
    messages await a reply, by default `IN_FLIGHT`: messages in Flower's store take memory and slow down every lookup.
    """

    def __init__(self, patience: Patience, in_flight: int | None = None) -> None:
        self._patience = patience
        self._in_flight = in_flight
        self._slowest = (0.0, 0.0)
        self._left: set[int] = set()
        self._lost_hosts: set[int] = set()
        self._unwanted: set[str] = set()

    def answers(
        self, grid: Grid, nodes: Sequence[int], shares: Sequence[Share], ask: Ask
    ) -> Iterator[tuple[Share, Message | None]]:
        """Yield every share once with its reply, in the order of arrival.

        A reply is an error if retries did not help, and `None` if the round's time is over. If a share gets two
        replies, the first counts; the other is pulled in a later round and dropped.
        """
        self._slowest = (self._slowest[1], 0.0)
        self._left = set()
        self._drop_unwanted(grid)
        end = time.monotonic() + self._patience.round
        waiting, out = [_Work(share) for share in shares], list[_Work]()
        last = time.monotonic()
        while (waiting or out) and time.monotonic() < end:
            self._send(grid, nodes, waiting, out, end, ask)
            for work in [work for work in waiting if self._given_up(work)]:
                waiting.remove(work)
                if work.share.host is not None:
                    self._lost_hosts.add(nodes[work.share.host])
                yield work.share, work.error
            before = last
            for work, reply in self._pulled(grid, out):
                last = time.monotonic()
                if reply.has_error() and work.out:
                    # Another message for the same share may still be answered.
                    continue
                out.remove(work)
                if reply.has_error() and self._again(work, reply):
                    waiting.insert(0, work)
                else:
                    self._unwanted.update(work.out)
                    self._slowest = (self._slowest[0], max(self._slowest[1], last - work.asked))
                    # Before the reply is processed, because its node is idle until it gets new work.
                    self._send(grid, nodes, waiting, out, end, ask)
                    yield work.share, reply
            if last == before:
                await_replies(grid, min(_LONGEST, max(_SHORTEST, (time.monotonic() - last) / 20)), _LONGEST)
        for work in (*waiting, *out):
            yield work.share, work.error

    def _send(
        self, grid: Grid, nodes: Sequence[int], waiting: list[_Work], out: list[_Work], end: float, ask: Ask
    ) -> None:
        """Send waiting shares to free nodes, and resend those that take too long."""
        now = time.monotonic()
        load = Counter(node for work in out for node in work.out.values())
        own = at_once(grid)
        most = max(IN_FLIGHT, own or 0) if self._in_flight is None else self._in_flight
        slowest = max(self._slowest)
        # A node that was killed and restarted without Flower noticing has lost its messages.
        slow = max(self._patience.slow, 5 * slowest) if slowest > 0 else self._patience.recovery
        late = [work for work in out if now - work.asked > slow * 2 ** (len(work.out) - 1)]
        # Lost work is sent twice at once. Flower's simulation keeps a dead actor on top of its stack of idle actors
        # and would give it a single message again and again; of two messages, one reaches a live actor.
        twice = [work for work in waiting if work.lost and work.not_before <= now and own is None]
        for work in [*late, *waiting, *twice]:
            if load.total() >= most and not work.out:
                break
            if work.not_before > now:
                continue
            node = self._node(nodes, work, load)
            if node is None:
                break
            ids = list(grid.push_messages([ask(work.share, node, max(1.0, end - now))]))
            work.tried.append(node)
            if not ids:
                # The share stays in the queue, and another node is tried if there is one.
                self._left.add(node)
                if node in self._lost_hosts:
                    # One try per round is enough for a host that was lost in an earlier round and has not returned.
                    work.failed = now - self._patience.recovery - 1
                work.not_before = now + (1.0 if self._left.issuperset(nodes) or work.share.host is not None else 0.0)
                work.failed = work.failed or now
                continue
            self._lost_hosts.discard(node)
            if not work.out:
                waiting.remove(work)
                out.append(work)
            work.out[ids[0]] = node
            work.asked = now
            load[node] += 1

    def _node(self, nodes: Sequence[int], work: _Work, load: Counter[int]) -> int | None:
        """Return the least busy node for the share, preferably one that has not tried it; `None` if all are busy."""
        if work.share.host is not None:
            return nodes[work.share.host]
        free = [node for node in nodes if not load[node] and node not in self._left]
        if self._left.issuperset(nodes):
            free = list(nodes)
        return min(free, key=lambda node: (work.tried.count(node), load[node]), default=None)

    def _drop_unwanted(self, grid: Grid) -> None:
        """Remove second replies from Flower's store, where they would otherwise stay until the end of the run."""
        if self._unwanted:
            for reply in grid.pull_messages(list(self._unwanted)):
                self._unwanted.discard(reply.metadata.reply_to_message_id)

    @staticmethod
    def _pulled(grid: Grid, out: list[_Work]) -> Iterator[tuple[_Work, Message]]:
        """Yield the replies that have arrived, with at most one successful reply per share."""
        names = [(work, list(work.out)) for work in out]
        done: list[_Work] = []
        for turn in range(max((len(asked) for _, asked in names), default=0)):
            asked = {asked[turn]: work for work, asked in names if len(asked) > turn and work not in done}
            for reply in grid.pull_messages(list(asked)) if asked else []:
                work = asked[reply.metadata.reply_to_message_id]
                del work.out[reply.metadata.reply_to_message_id]
                if not reply.has_error():
                    done.append(work)
                yield work, reply

    def _again(self, work: _Work, reply: Message) -> bool:
        """Return whether to retry after an error, and set the earliest time for the retry."""
        now = time.monotonic()
        work.error = reply
        work.failed = work.failed or now
        if reply.error.code in _APP_ERRORS:
            return len(work.tried) < 2
        work.lost = True
        # A new process takes seconds to start; until then, messages to it fail at once.
        work.not_before = now + min(5.0, 0.1 * 2 ** len(work.tried))
        return not self._given_up(work)

    def _given_up(self, work: _Work) -> bool:
        """Return whether a share has failed for too long."""
        return work.failed is not None and time.monotonic() - work.failed > self._patience.recovery
