"""Ctrl-C as a request, not as an exception in the middle of somebody else's code."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible(request: Callable[[], None]) -> Iterator[None]:
    """Call `request` at the first Ctrl-C inside the block; a second one raises `KeyboardInterrupt` as usual.

    Outside the main thread, where Python handles no signals, and in a process that ignores Ctrl-C, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        request()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
