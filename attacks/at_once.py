"""Independent parts of one computation, several at once."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")


def for_each(parts: Iterable[Part], do: Callable[[Part], None]) -> None:
    """Call `do` with every part, on as many threads as the process has cores or `OMP_NUM_THREADS` allows.

    Each thread computes with one core, so that few large products gain as many small ones do. The order is not told:
    what `do` writes must be its part's own.
    """
    threads = _threads()
    if threads == 1:
        for part in parts:
            do(part)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(do, parts):
            pass


def _threads() -> int:
    """Return how many threads the process may use: one in a worker beside others, which is told so."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
