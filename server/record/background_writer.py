"""Writing in the background: one thread does the jobs in the order in which they were submitted."""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

Job = Callable[[], object]


class BackgroundWriter:
    """Does jobs in one thread, strictly in the order of `submit`, with at most `limit_bytes` of them in memory.

    After a job has failed no other is done, so that nothing is written without what came before it. The exception is
    raised once, by the next `submit`, `drain` or `close`. After that `submit` raises it at every call, because the
    submitted job would otherwise be lost without notice.

    The thread is a daemon: a process that ends without `close` loses the queued jobs and does not hang.
    """

    def __init__(self, limit_bytes: int = 64 * 2**20) -> None:
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes must not be negative, got {limit_bytes}")
        self._limit = limit_bytes
        self._queue: deque[tuple[int, Job]] = deque()
        self._bytes = 0
        self._failure: BaseException | None = None
        self._told = False
        self._closed = False
        self._changed = threading.Condition()
        self._entrance = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="metaleak-writer", daemon=True)
        self._thread.start()

    def submit(self, size: int, job: Job) -> None:
        """Queue `job`, which keeps `size` bytes in memory until it is done.

        Blocks while it would bring the queue above the limit; a job above the limit waits for an empty queue.
        Raises what an earlier job raised, and `RuntimeError` after `close`.
        """
        # The entrance keeps a small job from overtaking a large one that waits for room.
        with self._entrance, self._changed:
            self._changed.wait_for(
                lambda: self._failure is not None or not self._queue or self._bytes + size <= self._limit
            )
            if self._failure is not None:
                self._told = True
                raise self._failure
            if self._closed:
                raise RuntimeError("the background writer is closed")
            self._queue.append((size, job))
            self._bytes += size
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until every job is done; raises the exception of a failed job if it was not raised before."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or not self._queue)
            if self._failure is not None and not self._told:
                self._told = True
                raise self._failure

    def close(self) -> None:
        """Do the queued jobs and end the thread; raises what `drain` raises. A second call does nothing."""
        try:
            self.drain()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                size, job = self._queue[0]  # it stays in the queue while it is done: it still holds its memory
            try:
                job()
            except BaseException as error:  # noqa: BLE001 (whatever it is, the one who submits gets it)
                with self._changed:
                    self._failure = error
                    self._queue.clear()
                    self._bytes = 0
                    self._changed.notify_all()
                return
            del job
            with self._changed:
                self._queue.popleft()
                self._bytes -= size
                self._changed.notify_all()
