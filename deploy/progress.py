"""Progress of a command: bars on a terminal, and occasional plain lines elsewhere."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_FIRST_SECONDS = 10.0
_SECONDS = 60.0


class PlainLines:
    """Progress as lines: the first after ten seconds, then one per minute, as long as there are updates."""

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._began = self._next = 0.0
        self._first: float | None = None
        self._task: dict[str, Any] = {}

    def add_task(self, description: str, total: float | None = None, **fields: Any) -> TaskID:
        """Begin a task; the field `left` is the time left in words, if the caller knows it."""
        self._began = self._clock()
        self._next = self._began + _FIRST_SECONDS
        self._first = None
        self._task = {"name": description, "description": description, "completed": None, "total": total, **fields}
        return TaskID(0)

    def update(self, task: Any, /, **what: Any) -> None:
        """Update the task, and print a line when one is due."""
        self._task |= what
        now, done = self._clock(), self._task["completed"]
        if self._first is None and done is not None:
            # Steps that were done before this call do not count for its speed.
            self._first, self._began = done, now
        if now >= self._next and done is not None and self._task["total"]:
            self._next = now + _SECONDS
            left = self._task.get("left", self._left(now, done))
            self._say(f"{self._task['description']}: {done} of {self._task['total']}{', ' + left if left else ''}")

    def _left(self, now: float, done: float) -> str:
        if self._first is None or done <= self._first:
            return ""
        seconds = (now - self._began) / (done - self._first) * (self._task["total"] - done)
        return f"about {math.ceil(seconds / 60)} min left"


Shown = Progress | PlainLines
"""What shows the progress of one task."""


@contextmanager
def shown_progress(timed: bool = True) -> Iterator[Shown]:
    """Show progress on the standard error; if `timed`, with the time left, estimated from the steps so far."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainLines(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    columns += [TextColumn("left"), TimeRemainingColumn()] if timed else [TextColumn("{task.fields[left]}")]
    with Progress(*columns, console=console) as progress:
        yield progress
