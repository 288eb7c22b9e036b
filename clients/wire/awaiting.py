"""What a grid may know beyond Flower's interface: when a reply comes, and how many messages it takes at once."""

import time
from typing import Protocol, runtime_checkable


@runtime_checkable
class AwaitsReplies(Protocol):
    """A grid that may know when a reply comes."""

    def await_replies(self, seconds: float, at_most: float) -> None:
        """Return when a reply has come, or after `at_most` seconds; where that cannot be known, after `seconds`."""
        ...


def await_replies(grid: object, seconds: float, at_most: float) -> None:
    """Wait for replies on any grid, see `AwaitsReplies`."""
    if isinstance(grid, AwaitsReplies):
        grid.await_replies(seconds, at_most)
    else:
        time.sleep(seconds)


def at_once(grid: object) -> int | None:
    """Return how many messages keep all of a grid's processes busy, where it gives them out itself; else `None`.

    Such a grid states it in the attribute `at_once`. It gives messages to processes that live, and no node waits for
    one that is dead.
    """
    stated = getattr(grid, "at_once", None)
    return stated if isinstance(stated, int) else None
