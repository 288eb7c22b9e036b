"""Keeping freed memory in the process for reuse by later tensors."""

import contextlib
import ctypes
import os
from functools import cache

_TRIM, _MAP = -1, -3
"""glibc's `M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` (`mallopt(3)`)."""

_LARGEST = 256 << 20
"""The largest size in bytes of a tensor whose memory is kept; gradients of chunks and activations are smaller."""

_KEPT = 512 << 20
"""The maximum number of bytes that are kept."""


@cache
def keep_freed_memory() -> None:
    """Make this process keep up to 512 MiB of freed memory if the C library is glibc.

    By default, glibc returns the memory of tensors of tens of MiB to the system when they are freed. The next tensor
    then gets new pages, each of which is zeroed when it is first written; on a virtual machine this takes longer than
    most arithmetic on the tensor. Does nothing if `MALLOC_MMAP_THRESHOLD_` or `MALLOC_TRIM_THRESHOLD_` is set.
    """
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        # A threshold that is refused must leave the other one alone, which would end glibc's own adaptation.
        if library.mallopt(_MAP, _LARGEST):
            library.mallopt(_TRIM, _KEPT)
