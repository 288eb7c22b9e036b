"""Suites: every combination once, nothing twice, no failure hidden."""

import json
import re

import pytest
from local_grid import LocalGrid

import metaleak.deploy.suite as suite_module
from metaleak.clients import client_app
from metaleak.deploy.errors import Interrupted
from metaleak.deploy.launch import Simulation
from metaleak.deploy.results import read_suite
from metaleak.deploy.suite import Suite, benchmark, read_suite_file

BASE = {
    "data": {"name": "digits"},
    "task": {"ways": 3},
    "partition": {"learners": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"rounds": 2},
    "evaluation": {"tasks": 5, "queries": 3},
    "attacks": [{"name": "query", "iterations": 3, "fit": 0}, {"name": "support", "iterations": 3, "fit": 0}],
    "targets": {"members": 6, "non_members": 6},
}
NOISE = {"name": "noise", "place": "shared", "scale": 1.0}


@pytest.fixture
def simulated(monkeypatch):
    """Simulate in this process, and list which runs were."""
    done = []

    def start(simulation):
        done.append(simulation.run.path.name)
        return simulation.serve(LocalGrid(client_app(simulation.federation)))

    monkeypatch.setattr(Simulation, "start", start)
    return done


def grid(**axes):
    return Suite(name="mine", base=BASE, grid=axes)


def test_a_suite_is_every_combination():
    found = grid(defences=[[], [NOISE]], learners=[4, 5], ways=[2, 3]).experiments(["rounds=7"])
    assert [(len(e.defences), e.partition.learners, e.task.ways) for e in found] == [
        (noise, learners, ways) for noise in (0, 1) for learners in (4, 5) for ways in (2, 3)
    ]
    assert {e.server.rounds for e in found} == {7}


def test_a_second_call_runs_only_what_is_missing(tmp_path, simulated):
    first = benchmark(grid(defences=[[], [NOISE]]), tmp_path)
    assert len(simulated) == 2
    assert [cell.status for cell in first] == ["done"] * 4
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("attack.json")}
    again = benchmark(grid(defences=[[], [NOISE]], learners=[6, 5]), tmp_path)
    assert len(simulated) == 4, "the two runs with 6 learners are there already"
    assert len(again) == 8
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert {cell.id for cell in first} <= {cell.id for cell in again}


def test_another_attack_configuration_is_another_cell_on_the_same_run(tmp_path, simulated):
    benchmark(grid(), tmp_path, changes=["attacks=[{name: query, iterations: 2, fit: 0}]"])
    benchmark(grid(), tmp_path, changes=["attacks=[{name: query, iterations: 4, fit: 0}]"])
    assert len(simulated) == 1
    assert len(list(tmp_path.rglob("attack.json"))) == 2


def test_changes_reach_every_combination():
    suite = Suite(base=BASE, grid={"data": [{"name": "mnist"}, {"name": "fashion-mnist"}]})
    found = suite.experiments(["data.data_dir=/somewhere", "rule.inner_steps=2"])
    assert [str(e.federation().data.data_dir) for e in found] == ["/somewhere"] * 2
    assert [e.federation().rule.inner_steps for e in found] == [2, 2]


def test_a_suite_without_attacks_still_reports_its_failures(tmp_path, monkeypatch):
    monkeypatch.setattr(suite_module, "simulate", lambda *_: 1 / 0)
    cells = benchmark(grid(), tmp_path, changes=["attacks=[]"])
    assert [(cell.status, cell.error) for cell in cells] == [("failed", "ZeroDivisionError: division by zero")]


def test_an_interrupted_call_keeps_the_cells_that_are_done(tmp_path, monkeypatch, simulated):
    benchmark(grid(), tmp_path)

    def interrupt(*_):
        raise Interrupted("stopped")

    monkeypatch.setattr(suite_module, "simulate", interrupt)
    with pytest.raises(Interrupted):
        benchmark(grid(defences=[[NOISE], []]), tmp_path)
    assert [(cell.status, cell.error) for cell in read_suite(tmp_path).cells] == [
        *[("failed", "not run yet")] * 2,
        *[("done", None)] * 2,
    ]


def test_an_interrupted_attack_ends_the_suite(tmp_path, monkeypatch, simulated):
    def interrupt(*_):
        raise Interrupted("stopped")

    monkeypatch.setattr(suite_module, "assess", interrupt)
    with pytest.raises(Interrupted):
        benchmark(grid(), tmp_path)


def test_a_failed_cell_is_reported_and_tried_again(tmp_path, monkeypatch, simulated):
    whole = suite_module.simulate

    def failing(experiment, out, on_round=None):
        if experiment.defences:
            raise RuntimeError("the actor died\nin many lines")
        return whole(experiment, out, on_round)

    monkeypatch.setattr(suite_module, "simulate", failing)
    cells = benchmark(grid(defences=[[NOISE], []]), tmp_path)
    assert [(cell.status, cell.error) for cell in cells[:2]] == [("failed", "the actor died")] * 2
    assert [cell.status for cell in cells[2:]] == ["done"] * 2
    assert [cell.status for cell in read_suite(tmp_path).cells] == ["failed", "failed", "done", "done"]
    monkeypatch.setattr(suite_module, "simulate", whole)
    assert {cell.status for cell in benchmark(grid(defences=[[NOISE], []]), tmp_path)} == {"done"}


def test_a_run_that_did_not_finish_goes_on(tmp_path, simulated):
    benchmark(grid(), tmp_path)
    run = next((tmp_path / "runs").iterdir()) / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "status": "interrupted"}))
    assert {cell.status for cell in benchmark(grid(), tmp_path)} == {"done"}
    assert len(simulated) == 2


def test_a_finished_run_is_taken_as_it_is_whatever_the_engine(tmp_path, simulated):
    benchmark(grid(), tmp_path)
    cells = benchmark(grid(), tmp_path, changes=["engine.chunk=2", "engine.device=cpu"])
    assert {cell.status for cell in cells} == {"done"}
    assert len(simulated) == 1


def test_labels_say_what_the_suite_varies(tmp_path, simulated):
    cells = benchmark(grid(defences=[[], [NOISE]], ways=[2, 3]), tmp_path)
    assert [cell.label for cell in cells[::2]] == [
        "undefended, task.ways 2",
        "undefended, task.ways 3",
        "shared noise, gaussian, scale 1, task.ways 2",
        "shared noise, gaussian, scale 1, task.ways 3",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "must be a mapping"),
        ("grid: {defences: 3}", "grid.defences"),
        ("base: {}\nbananas: 1", "bananas"),
        ("grid: {learners: [nope]}", "partition.learners"),
        ("grid: {ways: []}", "grid.ways: must have at least one value"),
    ],
)
def test_a_wrong_suite_is_named_in_one_line(tmp_path, content, said):
    path = tmp_path / "suite.yaml"
    path.write_text(content)

    def load():
        read_suite_file(path).experiments()

    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load()
    assert "\n" not in str(caught.value)
