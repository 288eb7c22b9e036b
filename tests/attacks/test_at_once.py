"""Parts of a computation on several threads."""

import threading

import pytest

from metaleak.attacks.at_once import for_each


@pytest.mark.parametrize(("told", "most"), [("1", 1), ("3", 3)])
def test_every_part_is_done_once_on_as_many_threads_as_are_allowed(monkeypatch, told, most):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    found, threads = [0] * 50, set()

    def do(part):
        found[part] += part
        threads.add(threading.get_ident())

    for_each(range(50), do)
    assert found == list(range(50))
    assert len(threads) <= most
    assert (threads == {threading.get_ident()}) == (most == 1)


def test_an_error_in_a_part_is_raised_to_the_caller(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    def do(part):
        raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match="part 0"):
        for_each(range(4), do)
