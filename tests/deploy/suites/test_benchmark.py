"""Suites: every combination once, nothing twice, no failure hidden."""

import json
import re
import signal
import sys
import types

import pytest
from workers_here import WorkersHere

import metaleak.deploy.suites.jobs as jobs_module
from metaleak.attacks import query_attack
from metaleak.clients.models import MLP
from metaleak.deploy.config.suite import Suite, read_suite_file
from metaleak.deploy.errors import Interrupted
from metaleak.deploy.results.reading import read_suite
from metaleak.deploy.simulate.run_directory import held
from metaleak.deploy.suites.benchmark import benchmark as run_benchmark

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
def benchmark():
    """Run suites in this process; `benchmark.begun` are the jobs of all calls."""

    def run(suite, out, watch=None, changes=()):
        workers = WorkersHere()
        try:
            return run_benchmark(suite, out, watch, changes, workers=lambda settings: workers)
        finally:
            run.begun += workers.begun

    run.begun = []
    return run


def simulations(benchmark):
    return [job for job in benchmark.begun if job.attack is None]


def grid(**axes):
    return Suite(name="mine", base=BASE, grid=axes)


class PickyQuery:
    """A query attack on linear models."""

    asks = "query"
    requires = frozenset()

    def applies_to(self, model):
        return isinstance(model, MLP) and not model.hidden

    def __call__(self, observation, targets, seed, progress=None):
        return query_attack(iterations=1, fit=0, knows="nothing")(observation, targets, seed, progress)


def test_a_suite_is_every_combination():
    found = grid(defenses=[[], [NOISE]], learners=[4, 5], ways=[2, 3]).experiments(["rounds=7"])
    assert [(len(e.defenses), e.partition.learners, e.task.ways) for e in found] == [
        (noise, learners, ways) for noise in (0, 1) for learners in (4, 5) for ways in (2, 3)
    ]
    assert {e.server.rounds for e in found} == {7}


def test_axes_have_short_names_and_short_values():
    found = grid(
        models=["lenet"], rules=["fomaml"], shots=[2], queries=[3], defenses=[None, "sign", NOISE], attacks=["query"]
    ).experiments()
    assert {(e.model.name, e.rule.name, e.task.shots, e.task.queries) for e in found} == {("lenet", "fomaml", 2, 3)}
    assert [[defense.name for defense in e.defenses] for e in found] == [[], ["sign"], ["noise"]]
    assert [[attack.name for attack in e.attacks] for e in found] == [["query"]] * 3


def test_each_multiplies_a_setting_out_wherever_it_stands():
    noise = {"name": "noise", "place": {"each": ["query", "shared"]}, "scale": {"each": [1.0, 2.0]}}
    found = grid(defenses=[[noise, "sign"]], models=[{"name": "mlp", "hidden": {"each": [[4], [8]]}}]).experiments()
    assert [(*e.defenses[0].settings.values(), e.defenses[1].name, e.model.settings["hidden"][0]) for e in found] == [
        (place, scale, "sign", hidden) for place in ("query", "shared") for scale in (1, 2) for hidden in (4, 8)
    ]


def test_settings_change_together_and_a_rule_can_be_a_defense():
    found = grid(
        settings=[{"ways": 2, "model": "lenet"}, {"task.ways": 3, "model.hidden": [4]}],
        defenses=[NOISE, {"rule": "fomaml"}, {"rule": "anil", "defenses": NOISE}],
    ).experiments()
    assert [(e.task.ways, e.model.name, e.rule.name, len(e.defenses)) for e in found] == [
        (ways, model, rule, defenses)
        for ways, model in ((2, "lenet"), (3, "mlp"))
        for rule, defenses in (("maml", 1), ("fomaml", 0), ("anil", 1))
    ]


def test_a_second_call_runs_only_what_is_missing(tmp_path, benchmark):
    first = benchmark(grid(defenses=[[], [NOISE]]), tmp_path)
    assert len(benchmark.begun) == 2 + 4
    assert [cell.status for cell in first] == ["done"] * 4
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("attack.json")}
    again = benchmark(grid(defenses=[[], [NOISE]], learners=[6, 5]), tmp_path)
    assert len(simulations(benchmark)) == 4, "the two runs with 6 learners are there already"
    assert len(again) == 8
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert {cell.id for cell in first} <= {cell.id for cell in again}


def test_a_suite_that_is_done_starts_no_worker(tmp_path, benchmark):
    done = benchmark(grid(), tmp_path)

    def refuse(settings):
        raise AssertionError("a worker was started")

    assert run_benchmark(grid(), tmp_path, workers=refuse) == done


def test_experiments_that_differ_in_attacks_alone_share_a_run(tmp_path, benchmark):
    attacks = [{"name": "query", "iterations": {"each": [2, 4]}, "fit": 0}]
    cells = benchmark(grid(attacks=attacks), tmp_path)
    assert len(simulations(benchmark)) == 1
    assert len(cells) == len(list(tmp_path.rglob("attack.json"))) == 2


def test_changes_reach_every_combination():
    suite = Suite(base=BASE, grid={"data": [{"name": "mnist"}, {"name": "fashion-mnist"}]})
    found = suite.experiments(["data.data_dir=/somewhere", "rule.inner_steps=2"])
    assert [str(e.federation().data.data_dir) for e in found] == ["/somewhere"] * 2
    assert [e.federation().rule.inner_steps for e in found] == [2, 2]


def test_a_suite_without_attacks_still_reports_its_failures(tmp_path, monkeypatch, benchmark):
    monkeypatch.setattr(jobs_module, "simulate_here", lambda *_: 1 / 0)
    cells = benchmark(grid(), tmp_path, changes=["attacks=[]"])
    assert [(cell.status, cell.error) for cell in cells] == [("failed", "ZeroDivisionError: division by zero")]


def test_two_processes_do_not_work_on_one_suite(tmp_path, benchmark):
    benchmark(grid(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with held(tmp_path, "this suite"), pytest.raises(ValueError, match="another process is working on this suite"):
        benchmark(grid(defenses=[[NOISE], []]), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {cell.status for cell in benchmark(grid(), tmp_path)} == {"done"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_call_keeps_the_cells_that_are_done_and_the_next_goes_on(tmp_path, benchmark, number):
    benchmark(grid(), tmp_path)
    heard = []

    def interrupt_at_the_third(standing):
        heard.append(standing)
        if standing.done == 3:
            signal.raise_signal(number)

    with pytest.raises(Interrupted):
        benchmark(grid(defenses=[[NOISE], []]), tmp_path, interrupt_at_the_third)
    statuses = [cell.status for cell in read_suite(tmp_path).cells]
    assert statuses[2:] == ["done"] * 2
    assert "waiting" in statuses[:2]
    begun = len(benchmark.begun)
    assert {cell.status for cell in benchmark(grid(defenses=[[NOISE], []]), tmp_path)} == {"done"}
    assert 1 <= len(benchmark.begun) - begun <= 2
    assert len(simulations(benchmark)) == 2
    assert heard[0].total == 6


def test_a_failed_cell_is_reported_and_tried_again(tmp_path, monkeypatch, benchmark):
    whole = jobs_module.simulate_here

    def failing(experiment, out):
        if experiment.defenses:
            raise RuntimeError("out of luck\nin many lines")
        return whole(experiment, out)

    monkeypatch.setattr(jobs_module, "simulate_here", failing)
    cells = benchmark(grid(defenses=[[NOISE], []]), tmp_path)
    assert [(cell.status, cell.error) for cell in cells[:2]] == [("failed", "out of luck")] * 2
    assert [cell.status for cell in cells[2:]] == ["done"] * 2
    assert [cell.status for cell in read_suite(tmp_path).cells] == ["failed", "failed", "done", "done"]
    monkeypatch.setattr(jobs_module, "simulate_here", whole)
    assert {cell.status for cell in benchmark(grid(defenses=[[NOISE], []]), tmp_path)} == {"done"}


def test_what_killed_processes_left_of_the_files_of_a_suite_is_removed(tmp_path, benchmark):
    names = ("suite.json", "suite.yaml", "leaderboard.parquet", "leaderboard.json")
    for name in (*names, "notes.txt"):
        (tmp_path / f".{name}.0123456789abcdef.part").write_bytes(b"half")
    benchmark(grid(), tmp_path)
    assert [path.name for path in tmp_path.glob(".*.part")] == [".notes.txt.0123456789abcdef.part"]


def test_a_run_that_did_not_finish_goes_on(tmp_path, benchmark):
    benchmark(grid(), tmp_path)
    run = next((tmp_path / "runs").iterdir()) / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "status": "interrupted"}))
    assert {cell.status for cell in benchmark(grid(), tmp_path)} == {"done"}
    assert len(simulations(benchmark)) == 2
    assert json.loads(run.read_text())["status"] == "done"


def test_a_finished_run_is_taken_as_it_is_whatever_the_engine(tmp_path, benchmark):
    benchmark(grid(), tmp_path)
    cells = benchmark(grid(), tmp_path, changes=["engine.chunk=2", "engine.device=cpu"])
    assert {cell.status for cell in cells} == {"done"}
    assert len(simulations(benchmark)) == 1


def test_an_attack_that_does_not_fit_the_model_is_no_failure(tmp_path, monkeypatch, benchmark):
    monkeypatch.setitem(sys.modules, "picky", types.SimpleNamespace(Query=PickyQuery))
    hidden = {"name": "mlp", "hidden": {"each": [[8], []]}}
    cells = benchmark(grid(models=[hidden], attacks=["picky:Query"]), tmp_path)
    assert [(cell.status, cell.error) for cell in cells] == [
        ("not applicable", "picky:Query does not apply to the model MLP"),
        ("done", None),
    ]
    assert len(simulations(benchmark)) == 1, "nothing is simulated that nobody attacks"


def test_a_bound_above_the_promise_fails_in_every_call(tmp_path, benchmark):
    benchmark(grid(), tmp_path)
    path = next(tmp_path.rglob("query-*/attack.json"))
    described = json.loads(path.read_text())
    described["privacy"] = {"accounted": 1.0, "delta": 1e-5, "lower_bound": 2.0, "confidence": 0.95}
    path.write_text(json.dumps(described))
    for _ in range(2):
        failed, fine = benchmark(grid(), tmp_path)
        assert (failed.status, fine.status) == ("failed", "done")
        assert "exceeds the accounted 1" in failed.error


def test_labels_say_what_the_suite_varies(tmp_path, benchmark):
    cells = benchmark(grid(defenses=[[], [NOISE]], ways=[2, 3]), tmp_path)
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
        ("grid: {defenses: 3}", "grid.defenses"),
        ("base: {}\nbananas: 1", "bananas"),
        ("grids: {ways: [2]}", "grids: unknown key 'grids', did you mean 'grid'? Allowed are base, grid, kind, name"),
        ("grid: {learner: [3]}", "grid: unknown key 'learner', did you mean 'learners'? Allowed are"),
        ("grid: {learners: [nope]}", "partition.learners"),
        ("grid: {ways: []}", "grid.ways: must have at least one value"),
        ("grid: {ways: [{each: 3}]}", "grid.ways: each must stand alone and be a list"),
        (
            "grid: {seed: [{each: [" + "1, " * 200 + "1]}], ways: [[" + "{each: [2, 3]}, " * 40 + "2]]}",
            "grid: multiplies out to 2.21e+14 experiments, more than the 10000",
        ),
        ("grid: {settings: [3]}", "grid.settings: must be mappings"),
        ("grid: {defenses: [{rule: nope}]}", "rule.name: unknown name 'nope'"),
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
