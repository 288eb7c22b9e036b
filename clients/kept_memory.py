"""Memory that was freed stays with the process, for the next tensors of its size."""

import contextlib
import ctypes
import os
from functools import cache

_TRIM, _MAP = -1, -3
"""glibc's `M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` (`mallopt(3)`)."""

_LARGEST = 256 << 20
"""Bytes of the largest tensor whose memory is kept; a chunk's gradients and a layer's activations are smaller."""

_KEPT = 512 << 20
"""Bytes that stay, at most."""


@cache
def keep_freed_memory() -> None:
    """Have this process keep up to 512 MiB that it has freed, where the C library is glibc.

    By default glibc gives tensors of tens of MiB back to the system when they are freed, and the next one is built of
    new pages, each of which is zeroed when it is first written: on a virtual machine this takes longer than most
    arithmetic on it. Does nothing where `MALLOC_MMAP_THRESHOLD_` or `MALLOC_TRIM_THRESHOLD_` is set.
    """
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MAP, _LARGEST)
        library.mallopt(_TRIM, _KEPT)
