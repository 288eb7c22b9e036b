"""The number of cores that this process may use."""

import os


def usable_cores() -> int:
    """Return the number of cores that the scheduler lets this process use, at least 1."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:
        # macOS has no affinity.
        return max(1, os.cpu_count() or 1)
