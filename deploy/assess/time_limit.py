"""Refusing what would take days, once its pace is known."""

import time
from collections.abc import Callable

from metaleak.attacks.attack import Progress

_MEASURED_SECONDS = 10.0
"""How long the pace is measured before anything is said of it."""

Advance = Callable[[float, float], None]
"""Called with (done, total), in any unit, of which parts count too."""


def within_hours(
    progress: Progress | None, hours: float, lower: str, clock: Callable[[], float] = time.monotonic
) -> Advance:
    """Return what to call as a computation goes on; it passes whole numbers on to `progress`.

    After the first ten seconds, once, it raises `ValueError` when the whole would take more than `hours`, with the
    estimate and the settings to `lower`.
    """
    first: tuple[float, float] | None = None
    judged = False

    def advance(done: float, total: float) -> None:
        nonlocal first, judged
        now = clock()
        if first is None:
            first = now, done
        elif not judged and now - first[0] >= _MEASURED_SECONDS and done > first[1]:
            judged = True
            left = (now - first[0]) / (done - first[1]) * (total - done) / 3600
            if left > hours:
                raise ValueError(
                    f"the attack would take about {left:.0f} hours, more than the {hours:g} that "
                    f"engine.longest_hours allows: lower {lower}, or raise it"
                )
        if progress is not None:
            progress(int(done), int(total))

    return advance
