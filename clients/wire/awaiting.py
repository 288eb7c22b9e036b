"""Optional additions to Flower's grid interface: waiting for a reply, and how many messages are answered at once."""

import time
from typing import Protocol, runtime_checkable


@runtime_checkable
class AwaitsReplies(Protocol):
    """A grid that can wait for the arrival of a reply."""

    def await_replies(self, seconds: float, at_most: float) -> None:
        """Return once a reply has arrived, or after `at_most` seconds; after `seconds` if that cannot be detected."""
        ...


def await_replies(grid: object, seconds: float, at_most: float) -> None:
    """Wait for replies on any grid (see `AwaitsReplies`); sleep for `seconds` on grids without this method."""
    if isinstance(grid, AwaitsReplies):
        grid.await_replies(seconds, at_most)
    else:
        time.sleep(seconds)


def at_once(grid: object) -> int | None:
    """Return how many messages keep all processes of a grid busy; `None` if it does not schedule them itself.

    A grid that schedules its own messages states this number in the attribute `at_once`. It gives messages only to
    live processes, so no node waits for a dead one.
    """
    stated = getattr(grid, "at_once", None)
    return stated if isinstance(stated, int) else None
