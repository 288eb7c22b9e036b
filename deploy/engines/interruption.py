"""Ctrl-C and SIGTERM as a request to stop, instead of an exception at an arbitrary point in library code."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible(request: Callable[[], None]) -> Iterator[None]:
    """Call `request` at the first Ctrl-C or SIGTERM inside the block.

    A later Ctrl-C raises `KeyboardInterrupt` as usual. A later SIGTERM does nothing, because programs such as
    `timeout` send two. Nothing changes outside the main thread, where Python handles no signals. A signal that the
    process ignores stays ignored.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}
    handled = [number for number in signals if before[number] != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else _do_nothing)
        request()

    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass
