"""A Flower grid that calls back for every message and reply that passes through it."""

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from metaleak.clients.wire import awaiting
from metaleak.clients.wire.awaiting import await_replies
from metaleak.clients.wire.flower_private import Run

_LONGEST_WAIT = 0.5


class WatchedGrid(Grid):
    """Passes everything on to `grid` unchanged, and calls back.

    `sent(message)` is called after a message got its id. `received(reply)` is called for each reply when it is
    pulled, before any strategy gets it. `check()` is called while waiting, and may raise to end the wait. `interval`
    is the time in seconds after which replies are looked for again.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        sent: Callable[[Message], None] | None = None,
        received: Callable[[Message], None] | None = None,
        check: Callable[[], None] | None = None,
        interval: float = 0.02,
    ) -> None:
        self._grid = grid
        self._sent = sent
        self._received = received
        self._check = check
        self._interval = interval

    def set_run(self, run: Run) -> None:
        """Set the run of the wrapped grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the wrapped grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return the wrapped grid's message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the wrapped grid's node ids."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push `messages` through the wrapped grid and return their ids."""
        if self._check is not None:
            self._check()
        pushed = list(messages)
        ids = list(self._grid.push_messages(pushed))
        if self._sent is not None:
            for message in pushed:
                self._sent(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        if self._check is not None:
            self._check()
        replies = list(self._grid.pull_messages(message_ids))
        if self._received is not None:
            for reply in replies:
                self._received(reply)
        return replies

    @property
    def at_once(self) -> int | None:
        """What the wrapped grid states, see `awaiting.at_once`."""
        return awaiting.at_once(self._grid)

    def await_replies(self, seconds: float, at_most: float) -> None:
        """Wait for replies on the wrapped grid."""
        await_replies(self._grid, seconds, at_most)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push `messages` and return the replies, in the order of their arrival."""
        return list(self.replies(messages, timeout=timeout))

    def replies(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push `messages` and yield each reply as it arrives; stop when all are here or after `timeout` seconds."""
        missing = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        while missing and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(missing):
                missing.discard(reply.metadata.reply_to_message_id)
                yield reply
            if missing:
                await_replies(self._grid, self._interval, _LONGEST_WAIT)
