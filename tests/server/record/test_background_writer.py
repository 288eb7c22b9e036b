"""The background writer: in order, within its memory, and never silent about a failure."""

import subprocess
import sys
import threading
import time

import pytest

from metaleak.server.record.background_writer import BackgroundWriter


def waits(action):
    """Start `action` in a thread and return the thread and whether it is still waiting a moment later."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(0.2)
    return thread, thread.is_alive()


def full():
    raise OSError(28, "No space left on device")


def test_jobs_are_done_in_the_order_they_were_given():
    done = []
    with BackgroundWriter() as writer:
        for number in range(500):
            writer.submit(number % 7, lambda number=number: done.append(number))
    assert done == list(range(500))


def test_submit_does_not_wait_for_the_job():
    door = threading.Event()
    with BackgroundWriter(limit_bytes=100) as writer:
        _, waiting = waits(lambda: writer.submit(60, door.wait))
        assert not waiting
        door.set()


def test_submit_waits_only_while_the_limit_is_exceeded():
    door, done = threading.Event(), []
    with BackgroundWriter(limit_bytes=100) as writer:
        writer.submit(60, door.wait)
        writer.submit(40, lambda: done.append("fits"))
        thread, waiting = waits(lambda: writer.submit(1, lambda: done.append("too much")))
        assert waiting
        door.set()
        thread.join(5)
        assert not thread.is_alive()
    assert done == ["fits", "too much"]


def test_a_job_above_the_limit_is_let_in_when_nothing_else_is_queued():
    door, done = threading.Event(), []
    with BackgroundWriter(limit_bytes=10) as writer:
        writer.submit(1, door.wait)
        thread, waiting = waits(lambda: writer.submit(1000, lambda: done.append("large")))
        assert waiting
        door.set()
        thread.join(5)
    assert done == ["large"]


def test_a_small_job_does_not_overtake_a_large_one_that_waits():
    door, done = threading.Event(), []
    with BackgroundWriter(limit_bytes=100) as writer:
        writer.submit(60, door.wait)
        large, _ = waits(lambda: writer.submit(90, lambda: done.append("large")))
        small, waiting = waits(lambda: writer.submit(10, lambda: done.append("small")))
        assert waiting
        door.set()
        large.join(5)
        small.join(5)
    assert done == ["large", "small"]


def test_drain_returns_when_everything_is_done():
    done = []
    with BackgroundWriter() as writer:
        writer.submit(1, lambda: (time.sleep(0.1), done.append(1)))
        writer.drain()
        assert done == [1]


@pytest.mark.parametrize("asked", ["submit", "drain", "close"])
def test_a_failure_is_raised_by_whatever_is_called_next_and_nothing_after_it_is_done(asked):
    door, done = threading.Event(), []
    writer = BackgroundWriter()
    writer.submit(1, lambda: (door.wait(), full()))
    writer.submit(1, lambda: done.append("after it"))
    door.set()
    writer._thread.join(5)
    with pytest.raises(OSError, match="No space left"):
        writer.submit(1, lambda: done.append("later")) if asked == "submit" else getattr(writer, asked)()
    writer.drain()
    writer.close()
    assert done == []


def test_after_a_failure_no_job_is_taken_in_silence():
    writer = BackgroundWriter()
    writer.submit(1, full)
    with pytest.raises(OSError, match="No space left"):
        writer.drain()
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            writer.submit(1, lambda: None)
    writer.close()


def test_a_failure_wakes_one_who_waits_for_room():
    door = threading.Event()
    raised = []

    def submit():
        try:
            writer.submit(100, lambda: None)
        except OSError as error:
            raised.append(error.errno)

    writer = BackgroundWriter(limit_bytes=100)
    writer.submit(60, lambda: (door.wait(), full()))
    thread, waiting = waits(submit)
    assert waiting
    door.set()
    thread.join(5)
    assert raised == [28]
    writer.close()


def test_leaving_the_block_finishes_the_jobs_even_when_it_is_left_by_an_error():
    done = []

    def leave():
        with BackgroundWriter() as writer:
            writer.submit(1, lambda: (time.sleep(0.05), done.append(1)))
            raise KeyError("something else")

    with pytest.raises(KeyError):
        leave()
    assert done == [1]


def test_a_closed_writer_takes_nothing_and_can_be_closed_again():
    writer = BackgroundWriter()
    writer.close()
    writer.close()
    assert not writer._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        writer.submit(1, lambda: None)


def test_what_was_done_is_held_no_longer():
    import weakref

    class Held:
        pass

    writer, held = BackgroundWriter(), Held()
    gone = weakref.ref(held)
    writer.submit(1, lambda held=held: None)
    del held
    writer.drain()
    assert gone() is None
    writer.close()


def test_a_process_that_forgets_to_close_does_not_hang():
    code = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("background_writer", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
module.BackgroundWriter().submit(1, lambda: time.sleep(3600))
raise SystemExit(3)
"""
    path = sys.modules[BackgroundWriter.__module__].__file__
    assert subprocess.run([sys.executable, "-c", code, path], timeout=120).returncode == 3


def test_it_keeps_the_order_and_the_limit_under_many_threads():
    seen, most, queued, lock = [], 0, 0, threading.Lock()
    writer = BackgroundWriter(limit_bytes=50)

    def work(thread, number):
        nonlocal queued
        seen.append((thread, number))
        with lock:
            queued -= 10

    def submit(thread):
        nonlocal queued, most
        for number in range(100):
            writer.submit(10, lambda number=number: work(thread, number))
            with lock:
                queued += 10
                most = max(most, queued)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    writer.close()
    assert len(seen) == 400
    for thread in range(4):
        assert [number for one, number in seen if one == thread] == list(range(100))
    assert most <= 60  # the limit, and one that is done and not yet counted out
