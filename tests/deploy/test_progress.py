"""Progress where there is no terminal."""

from metaleak.deploy.progress import PlainLines


def lines(steps, seconds, total, begin=0, **fields):
    now, said = [0.0], []
    shown = PlainLines(said.append, lambda: now[0])
    task = shown.add_task("query attack", total=None, **fields)
    for step in range(begin, steps + 1):
        shown.update(task, completed=step, total=total)
        now[0] += seconds
    return said


def test_a_line_after_ten_seconds_and_then_one_a_minute():
    said = lines(40, 5, 40)
    assert said[0] == "query attack: 2 of 40, about 4 min left"
    assert said[1] == "query attack: 14 of 40, about 3 min left"
    assert len(said) == 4


def test_what_is_short_says_nothing():
    assert lines(9, 1, 9) == []


def test_what_was_done_before_does_not_make_it_look_fast():
    assert lines(92, 60, 100, begin=90) == [
        "query attack: 91 of 100, about 9 min left",
        "query attack: 92 of 100, about 8 min left",
    ]


def test_a_time_left_that_is_known_better_is_taken():
    assert lines(2, 10, 10, left="about 3 min left")[0] == "query attack: 1 of 10, about 3 min left"
