"""The time left: from jobs of the same kind where there are any, else from the next most like."""

from pathlib import Path

import pytest

from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.suites.forecast import Forecast
from metaleak.deploy.suites.jobs import Job


def job(attack=None, **changes):
    experiment = experiment_from({"partition": {"learners": 10}, **changes}, "test")
    return Job(experiment, Path("run"), None if attack is None else Plugin(name=attack))


def test_nothing_is_said_before_anything_ended():
    assert Forecast().seconds_left([job()], [], 2) is None


def test_jobs_are_taken_to_last_as_long_as_those_most_like_them():
    forecast = Forecast()
    for seconds in (10.0, 30.0):
        forecast.learn(job(), seconds)
    forecast.learn(job(partition={"learners": 1000}), 200.0)
    forecast.learn(job("query"), 2.0)
    small, large, other = job(), job(partition={"learners": 1000}), job(model={"name": "lenet"})
    assert forecast.seconds_left([small], [], 1) == pytest.approx(20)
    assert forecast.seconds_left([large], [], 1) == pytest.approx(200)
    assert forecast.seconds_left([other], [], 1) == pytest.approx(80), "another model: as simulations on average"
    assert forecast.seconds_left([job("support")], [], 1) == pytest.approx(60.5), "another attack: as anything"
    assert forecast.seconds_left([job("query")], [], 1) == pytest.approx(2)


def test_workers_share_the_rest_but_the_longest_job_is_not_split():
    forecast = Forecast()
    forecast.learn(job(), 20.0)
    assert forecast.seconds_left([job()] * 6, [], 3) == pytest.approx(40)
    assert forecast.seconds_left([job()], [], 3) == pytest.approx(20)
    assert forecast.seconds_left([], [(job(), 15.0), (job(), 50.0)], 2) == pytest.approx(5)
