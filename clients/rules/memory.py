"""The memory use of a computation, and its limit."""

import os
import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def memory_share(device: torch.device) -> int:
    """Return how many bytes one of the processes that share this machine may use for a batch.

    This is a quarter of the machine's memory, or half of the GPU's, divided by the number of cores.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 2 // (os.cpu_count() or 1)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 // (os.cpu_count() or 1)
    except (AttributeError, ValueError):
        return 1 << 30


def peak_bytes(compute: Callable[[], object]) -> int:
    """Return the peak number of bytes held by tensors created inside `compute()`, counting shared storage once.

    Temporary memory inside an operation, such as a convolution's unfolded images, is not counted.
    """
    with _Living() as living:
        compute()
    peak: int = living.peak
    return peak


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the storage of all tensors that operations return, from their creation to their release."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._bytes = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
        weakref.finalize(storage, self._end, size)

    def _end(self, size: int) -> None:
        self._bytes -= size
