"""Independent parts of one computation, computed in parallel."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")

_MOST = 8
"""The largest number of threads: each needs the memory of one part."""


def for_each(parts: Iterable[Part], do: Callable[[Part], None]) -> None:
    """Call `do` with every part, on one thread per core or as `OMP_NUM_THREADS` allows, but at most 8.

    Each thread computes with one core, so that a few large products gain as much as many small ones. Parts are
    computed in any order, so `do` may write only to data of its own part.
    """
    threads = _threads()
    if threads == 1:
        for part in parts:
            do(part)
        return
    # torch.set_num_threads in a thread also sets the default of all threads that are started later.
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(do, parts):
                pass
    finally:
        torch.set_num_threads(before)


def number_at_once(on_cpu: int, device: torch.device) -> int:
    """Return how many similar computations to batch on `device`: `on_cpu`, or sixteen times as many on a GPU.

    A CPU gains nothing from batches that exceed its cache; a GPU has many more units to keep busy.
    """
    return on_cpu if device.type == "cpu" else 16 * on_cpu


def _threads() -> int:
    """Return the number of threads that the process may use: one in a worker that shares the cores with others."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    if allowed.isdecimal() and int(allowed) > 0:
        return min(_MOST, int(allowed))
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST, cores)
