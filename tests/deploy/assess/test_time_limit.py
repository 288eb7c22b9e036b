"""What would take days is refused once its pace is known."""

import pytest

from metaleak.deploy.assess.time_limit import within_hours


def advancing(hours, seconds_a_step, steps, begin=0):
    now, told = [0.0], []
    advance = within_hours(lambda done, total: told.append(done), hours, "targets.members", lambda: now[0])
    for step in range(begin, steps + 1):
        advance(step, steps)
        now[0] += seconds_a_step
    return told


def test_the_first_steps_tell_that_it_is_too_long():
    with pytest.raises(ValueError, match=r"^the attack would take about 28 hours, more than the 24 ") as caught:
        advancing(24, 10, 10_000)
    assert "lower targets.members" in str(caught.value)


def test_what_is_done_already_does_not_count():
    assert advancing(1, 10, 10_000, begin=9_700)[-1] == 10_000


def test_it_is_judged_once_and_short_ones_never():
    assert len(advancing(24, 1, 1000)) == 1001
    assert len(advancing(1e-9, 0.1, 50)) == 51
