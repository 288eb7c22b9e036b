"""Waiting for replies: a grid that knows when one comes says so, and is not asked again and again."""

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
