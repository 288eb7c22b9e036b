"""Asking nodes and taking their answers as they come: lost work is given out again, slow work again."""

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
"""Seconds between two looks for replies: a twentieth of the time since the last one, within these bounds. On Flower's
deployment engine every look is a request to the SuperLink.
"""
_APP_ERRORS = (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.LOAD_CLIENT_APP_EXCEPTION)

IN_FLIGHT = 64
"""How many messages are out at once, by default, and more where a grid needs more to keep its processes busy."""

Ask = Callable[[Share, int, float], Message]
"""Makes the message for a share, a node and its time to live in seconds."""


@dataclass(frozen=True)
class Patience:
    """How long an answer is waited for, and when it is asked for again.

    A round ends `round` seconds after its start. An error that the app itself raised is tried once more; a lost
    node's work again and again for `recovery` seconds. A share that is out for `slow` seconds, and five times as
    long as the slowest of the rounds before and now (`recovery` seconds where no answer has come yet), is asked for
    once more, and again each time that twice as long has passed: the first answer counts.
    """

    round: float = 3600.0
    recovery: float = 300.0
    slow: float = 10.0


@dataclass
class _Work:
    """A share on its way: the messages that are out for it, each with its node, and what went wrong so far."""

    share: Share
    out: dict[str, int] = field(default_factory=dict)
    asked: float = 0.0
    tried: list[int] = field(default_factory=list)
    failed: float | None = None
    lost: bool = False
    not_before: float = 0.0
    error: Message | None = None


class Dispatch:
    """Gives out the shares of one round after another on a grid.

    Any node has at most one message at a time, a host all of its own, and `in_flight` are out in all, by default
    `IN_FLIGHT`: what lies in Flower's store takes memory, and the time that Flower takes to find a message grows with
    them.
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

        A reply may be an error, when trying again did not help; it is `None` when the round's time is over. Of two
        replies to one share the first counts; the other is pulled in a later round and dropped.
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
                    # Another message is out for the same share and may still be answered.
                    continue
                out.remove(work)
                if reply.has_error() and self._again(work, reply):
                    waiting.insert(0, work)
                else:
                    self._unwanted.update(work.out)
                    self._slowest = (self._slowest[0], max(self._slowest[1], last - work.asked))
                    # Before the reply is looked at: its node has nothing to do meanwhile.
                    self._send(grid, nodes, waiting, out, end, ask)
                    yield work.share, reply
            if last == before:
                await_replies(grid, min(_LONGEST, max(_SHORTEST, (time.monotonic() - last) / 20)), _LONGEST)
        for work in (*waiting, *out):
            yield work.share, work.error

    def _send(
        self, grid: Grid, nodes: Sequence[int], waiting: list[_Work], out: list[_Work], end: float, ask: Ask
    ) -> None:
        """Ask for what waits, as far as nodes are free, and once more for what takes too long."""
        now = time.monotonic()
        load = Counter(node for work in out for node in work.out.values())
        own = at_once(grid)
        most = max(IN_FLIGHT, own or 0) if self._in_flight is None else self._in_flight
        slowest = max(self._slowest)
        # A node that was killed and is back, of which Flower knows nothing, has forgotten what it was asked.
        slow = max(self._patience.slow, 5 * slowest) if slowest > 0 else self._patience.recovery
        late = [work for work in out if now - work.asked > slow * 2 ** (len(work.out) - 1)]
        # What was lost is asked for twice at once. In Flower's own simulation a dead actor stays on top of the stack
        # of idle ones: a single message would be given to it again and again, of two one finds a living actor.
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
                # The share stays where it is and tries another node, if there is one.
                self._left.add(node)
                if node in self._lost_hosts:
                    # One look a round is enough for a host that did not come back in all that time.
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
        """Return the least busy node that may take the share, rather one that has not tried; `None` if all are
        busy.
        """
        if work.share.host is not None:
            return nodes[work.share.host]
        free = [node for node in nodes if not load[node] and node not in self._left]
        if self._left.issuperset(nodes):
            free = list(nodes)
        return min(free, key=lambda node: (work.tried.count(node), load[node]), default=None)

    def _drop_unwanted(self, grid: Grid) -> None:
        """Take second answers out of Flower's store, where each would lie until the end."""
        if self._unwanted:
            for reply in grid.pull_messages(list(self._unwanted)):
                self._unwanted.discard(reply.metadata.reply_to_message_id)

    @staticmethod
    def _pulled(grid: Grid, out: list[_Work]) -> Iterator[tuple[_Work, Message]]:
        """Yield replies that are there: at most one good one a share, though two may have been asked for."""
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
        """Return whether to ask again after an error, and say from when on."""
        now = time.monotonic()
        work.error = reply
        work.failed = work.failed or now
        if reply.error.code in _APP_ERRORS:
            return len(work.tried) < 2
        work.lost = True
        # A new process takes seconds to start; until then its place answers with errors at once.
        work.not_before = now + min(5.0, 0.1 * 2 ** len(work.tried))
        return not self._given_up(work)

    def _given_up(self, work: _Work) -> bool:
        """Return whether a share has failed for too long."""
        return work.failed is not None and time.monotonic() - work.failed > self._patience.recovery
