"""Refusing computations that would take days, once their speed is known."""

import time
from collections.abc import Callable

from metaleak.attacks.attack import Progress

_MEASURED_SECONDS = 10.0
"""How long the speed is measured before the total time is estimated."""

Advance = Callable[[float, float], None]
"""Called with (done, total), in any unit; fractions of a unit are allowed."""


def within_hours(
    progress: Progress | None, hours: float, lower: str, clock: Callable[[], float] = time.monotonic
) -> Advance:
    """Return a function to call during a computation, which passes whole numbers on to `progress`.

    Once, after the first ten seconds, it raises `ValueError` if the whole computation would take more than `hours`;
    the message has the estimate and the settings to `lower`.
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
