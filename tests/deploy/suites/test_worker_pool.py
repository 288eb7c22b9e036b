"""Suites on Ray's workers: interrupted, killed, and the numbers are those of a run that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.config.suite import read_suite_file
from metaleak.deploy.engines import ray_start
from metaleak.deploy.results.reading import read_suite
from metaleak.deploy.simulate.launch import simulate_here
from metaleak.deploy.suites.jobs import Job
from metaleak.deploy.suites.worker_pool import RayWorkers
from metaleak.server import Record

PROC = Path("/proc")
SUITE = {
    "name": "two",
    "base": {
        "data": "mnist-5k",
        "partition": {"learners": 10},
        "rule": {"name": "maml", "inner_steps": 5},
        # Long enough to be under way still when it is disturbed for the third time.
        "server": {"rounds": 50},
        "evaluation": {"every": 50, "tasks": 10},
        "engine": {"chunk": 1, "actors": 2},
        "attacks": [{"name": "query", "iterations": 2, "fit": 0}],
        "targets": {"members": 10, "non_members": 10},
    },
    "grid": {"defenses": [None, {"name": "noise", "place": "shared", "scale": 0.1}]},
}

pytestmark = pytest.mark.skipif(not PROC.exists(), reason="needs /proc to find the workers")


def begun(folder):
    """Start the suite in a process of its own; return it once both runs have begun and one is under way."""
    command = "from metaleak.deploy.cli import main; main(['benchmark', 'suite.yaml', '--out', 'out', '--json'])"
    process = subprocess.Popen([sys.executable, "-c", command], cwd=folder, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        lines = [path.read_text().count("\n") for path in (folder / "out" / "runs").glob("*/metrics.jsonl")]
        if len(lines) == 2 and min(lines) >= 2 and workers_of(folder):
            return process
        time.sleep(0.05)
    raise AssertionError("the runs did not begin")


def workers_of(folder):
    """Return the processes that hold a run of the suite."""
    found = []
    for process in PROC.glob("[0-9]*"):
        try:
            held = {os.readlink(file) for file in (process / "fd").iterdir()}
        except OSError:
            continue
        if any(name.startswith(str(folder / "out" / "runs")) and name.endswith(".held") for name in held):
            found.append(int(process.name))
    return found


def gone(folder):
    deadline = time.monotonic() + 240
    while workers_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not workers_of(folder)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_suite_outlives_ctrl_c_and_killed_processes_without_a_changed_bit(tmp_path):
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    process = begun(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=240) == 130
    assert gone(tmp_path)
    assert {cell.status for cell in read_suite(tmp_path / "out").cells} == {"waiting"}

    process = begun(tmp_path)
    process.kill()
    process.wait()
    assert gone(tmp_path), "workers end with the process that they work for"

    process = begun(tmp_path)
    os.kill(workers_of(tmp_path)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0
    assert json.loads(said)["done"] == 2

    for number, experiment in enumerate(read_suite_file(tmp_path / "suite.yaml").experiments()):
        expected = simulate_here(experiment, tmp_path / str(number))
        run = tmp_path / "out" / "runs" / experiment.simulation_key()
        assert (run / "parameters.safetensors").read_bytes() == (
            expected.path / "parameters.safetensors"
        ).read_bytes()
        mine, theirs = Record(run / "record"), Record(expected.record)
        assert mine.rounds == theirs.rounds == list(range(1, 51))
        for round in (1, 25, 50):
            (who, gradients), (others, wanted) = mine.received(round), theirs.received(round)
            assert who == others
            assert all(gradients[name].tobytes() == value.tobytes() for name, value in wanted.items())


def test_what_ends_a_process_is_the_outcome_of_its_job(tmp_path, monkeypatch):
    class Deadly:
        """Pickled into a worker, it ends it."""

        def __reduce__(self):
            return os._exit, (3,)

    experiment = read_suite_file(_written(tmp_path)).experiments()[0]
    job = Job(experiment, tmp_path / "run", result=Deadly())
    with RayWorkers(EngineSettings(actors=1)) as workers:
        assert workers.count == 1
        workers.begin(job)
        ended = []
        deadline = time.monotonic() + 240
        while not ended and time.monotonic() < deadline:
            ended = workers.ended(1.0)
    ((same, outcome),) = ended
    assert same is job
    assert outcome.error.startswith("the worker process died")


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_dead_ray_is_told_in_one_line(monkeypatch, name):
    monkeypatch.setattr(ray_start, "lost_process", lambda: name)
    with pytest.raises(RuntimeError, match=f"^Ray's process {name} has died; the same command goes on from here$"):
        RayWorkers(EngineSettings(actors=1)).ended(0)


def _written(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return path
