"""A run that was cut off goes on, and ends as if nothing had happened."""

import json
import multiprocessing
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from local_grid import LocalGrid

from metaleak.clients import client_app
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.errors import Interrupted
from metaleak.deploy.simulate import launch
from metaleak.deploy.simulate.launch import resume, simulate
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.deploy.simulate.simulation import Simulation
from metaleak.server import ArrivingReplies, Record
from metaleak.server.learning.checkpoint import read_checkpoint
from metaleak.server.record import writer

EXPERIMENT = {
    "data": {"name": "digits"},
    "task": {"ways": 3},
    "partition": {"learners": 24, "examples_per_class": 6},
    "model": {"name": "mlp", "hidden": [16]},
    "defenses": [{"name": "noise", "place": "shared", "scale": 0.1}],
    "faults": {"dropout": 0.2},
    "server": {"rounds": 12, "fraction": 0.8, "optimizer": {"name": "adam", "rate": 0.01, "half_life": 4}},
    "evaluation": {"every": 3, "tasks": 5, "queries": 3},
    "engine": {"chunk": 4},
    "attacks": [],
}


def simulated_here(experiment, out, on_round, resume=False):
    """Do what `launch.simulated_on_ray` does on three nodes in this process, which write replies to files."""
    simulation = Simulation(experiment, out, on_round, resume)
    arriving = ArrivingReplies(simulation.run.arriving)
    app = client_app(simulation.federation, arriving=arriving.folder)
    return simulation.serve(LocalGrid(app, nodes=3), arriving=arriving)


@pytest.fixture
def locally(monkeypatch):
    """Let simulations run in this process, without Ray."""

    monkeypatch.setattr(launch, "simulated_on_ray", simulated_here)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    simulation = Simulation(experiment_from(EXPERIMENT, "test"), out)
    started = time.monotonic()
    run = simulation.serve(LocalGrid(client_app(simulation.federation), nodes=3))
    return run, time.monotonic() - started


def assert_same(run, other):
    assert (run.path / "parameters.safetensors").read_bytes() == (other.path / "parameters.safetensors").read_bytes()
    mine, theirs = (read_checkpoint(one.checkpoint) for one in (run, other))
    assert mine.round == theirs.round
    assert set(mine.optimizer) == set(theirs.optimizer)
    assert all(torch.equal(mine.optimizer[name], value) for name, value in theirs.optimizer.items())
    mine, theirs = Record(run.record), Record(other.record)
    assert mine.rounds == theirs.rounds
    for round in mine.rounds:
        (learners, gradients), (others, expected) = mine.received(round), theirs.received(round)
        assert learners == others
        assert all(gradients[name].tobytes() == expected[name].tobytes() for name in expected)
        assert all(mine.sent(round)[name].tobytes() == sent.tobytes() for name, sent in theirs.sent(round).items())
    told, expected_lines = (
        [{**json.loads(line), "seconds": 0} for line in (one.path / "metrics.jsonl").read_text().splitlines()]
        for one in (run, other)
    )
    assert told == expected_lines
    assert run.state().status == "done"


def simulate_in_a_process(out, resumed):
    """Start a simulation in a child that shares nothing with this process but the code, and return the child."""

    def work():
        launch.simulated_on_ray = simulated_here
        if resumed:
            resume(out)
        else:
            simulate(experiment_from(EXPERIMENT, "test"), out)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_no_bit(tmp_path, undisturbed, monkeypatch, kills):
    """Runs are killed with SIGKILL again and again; each time they go on from where they were."""
    # So that replies are copied past the page cache and their files used again, as large ones are.
    monkeypatch.setattr(writer, "_LEAST_COPIED", 0)
    other, seconds = undisturbed
    chance, rounds_at_kill, finished, out = np.random.default_rng(0), [], [], tmp_path / "0"
    while len(rounds_at_kill) < kills or not finished:
        child = simulate_in_a_process(out, resumed=(out / "experiment.yaml").exists())
        child.join(timeout=chance.uniform(0, 1.5 * seconds) if len(rounds_at_kill) < kills else None)
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            metrics = out / "metrics.jsonl"
            rounds_at_kill.append(len(metrics.read_text().splitlines()) if metrics.exists() else 0)
        else:
            assert child.exitcode == 0
            finished.append(out)
            out = tmp_path / str(len(finished))
    assert len(set(rounds_at_kill)) > kills // 5, f"the kills came in rounds {rounds_at_kill}, they should be spread"
    for path in finished:
        assert_same(RunDirectory(path), other)


def test_a_run_that_is_done_is_left_alone(tmp_path, locally, undisturbed):
    run, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert resume(run.path).path == run.path
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def cut_off(tmp_path, rounds=2):
    """Return a run that was interrupted after some rounds."""

    def interrupt(done):
        if done.round == rounds:
            raise Interrupted("now")

    simulation = Simulation(experiment_from(EXPERIMENT, "test"), tmp_path / "run", interrupt)
    with pytest.raises(Interrupted):
        simulation.serve(LocalGrid(client_app(simulation.federation), nodes=3))
    return simulation.run


def test_an_interrupted_run_goes_on_too(tmp_path, locally, undisturbed):
    run = cut_off(tmp_path)
    assert run.state().status == "interrupted"
    assert_same(resume(run.path), undisturbed[0])


def test_a_run_goes_on_as_it_began(tmp_path, locally):
    run = cut_off(tmp_path)
    for change in ("server.rounds=50", "seed=1", "engine.chunk=8"):
        with pytest.raises(ValueError, match="goes on as it began"):
            resume(run.path, [change])
    assert resume(run.path, ["engine.timeout=100"]).state().status == "done"


def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path, locally):
    run = cut_off(tmp_path)
    content = run.checkpoint.read_bytes()
    for damaged in (b"", content[:100], content[:-3], b"\xff" * 1000):
        run.checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors") as caught:
            resume(run.path)
        assert "\n" not in str(caught.value)
    run.checkpoint.write_bytes((run.path / "parameters.safetensors").read_bytes())
    with pytest.raises(ValueError, match="is not a checkpoint"):
        resume(run.path)


@pytest.mark.parametrize("content", [None, "{}", '{"status": "interrupted", "started": null}'])
def test_a_run_of_which_nothing_says_when_it_started_goes_on_and_is_done(tmp_path, locally, content):
    run = cut_off(tmp_path)
    (run.path / "run.json").unlink()
    if content is not None:
        (run.path / "run.json").write_text(content)
    state = resume(run.path).state()
    assert state.status == "done"
    assert state.seconds >= 0


@pytest.mark.parametrize("started", [5, "", "yesterday", "2026-01-31T12:00:00"])
def test_a_start_that_is_no_time_is_told_in_one_line_before_anything_is_computed(tmp_path, locally, started):
    run = cut_off(tmp_path)
    (run.path / "run.json").write_text(json.dumps({"status": "interrupted", "started": started}))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"run\.json: started: ") as caught:
        resume(run.path)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_two_processes_do_not_work_on_one_run(tmp_path, locally):
    run = cut_off(tmp_path)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with run.held(), pytest.raises(ValueError, match="another process is working on this run"):
        resume(run.path)
    assert {path: path.read_bytes() for path in before} == before
    assert resume(run.path).state().status == "done"


def test_what_a_process_left_that_died_while_it_made_a_run_is_removed_by_the_next(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / f".run.{gone.pid}.part"
    left.mkdir()
    (left / "experiment.yaml").write_text("name: x")
    living, notes = tmp_path / f".run.{os.getppid()}.part", tmp_path / ".run.notes.part"
    living.mkdir()
    notes.mkdir()
    RunDirectory.create(tmp_path / "run", experiment_from(EXPERIMENT, "test"))
    assert {path.name for path in tmp_path.iterdir()} == {"run", living.name, notes.name}


def test_a_killed_process_leaves_no_part_of_a_file_for_ever(tmp_path, locally):
    run = cut_off(tmp_path)
    (run.path / ".checkpoint.safetensors.0123456789abcdef.part").write_bytes(b"half")
    resume(run.path)
    assert not list(run.path.rglob("*.part"))
