"""What is written is what the schema's classes hold, and is read through the same classes."""

import json

import pytest
from pydantic import ValidationError
from workers_here import WorkersHere

from metaleak.deploy.config.suite import Suite
from metaleak.deploy.results.json_file import read_json, write_json
from metaleak.deploy.results.reading import read_suite
from metaleak.deploy.results.schema import AttackResult, Cell, Round, RunState, SuiteState
from metaleak.deploy.suites.benchmark import benchmark

BASE = {
    "data": "digits",
    "task": {"ways": 3},
    "partition": {"learners": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"rounds": 2},
    "evaluation": {"tasks": 5, "queries": 3},
    "attacks": [{"name": "query", "iterations": 3, "fit": 0}],
    "targets": {"members": 6, "non_members": 6},
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite")
    benchmark(Suite(base=BASE), path, workers=WorkersHere)
    return path


def test_every_file_has_the_fields_of_its_class_and_no_others(suite):
    (run,) = (suite / "runs").iterdir()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    described = json.loads((suite / "suite.json").read_text())
    for written, shape in (
        (described, SuiteState),
        (described["cells"][0], Cell),
        (json.loads((run / "run.json").read_text()), RunState),
        (json.loads(lines[0]), Round),
        (json.loads(next(run.rglob("attack.json")).read_text()), AttackResult),
    ):
        assert set(written) == set(shape.model_fields)


def test_what_is_read_is_what_was_written(suite, tmp_path):
    found = read_suite(suite)
    (run,) = found.runs.values()
    (attack,) = run.attacks
    for content in (SuiteState(name=found.name, cells=found.cells), run.state, *run.rounds, attack.result):
        write_json(tmp_path / "file.json", content)
        assert read_json(tmp_path, "file.json", type(content)) == content
    assert run.state.status == "done"
    assert [line.round for line in run.rounds] == [1, 2]
    assert attack.result.evaluation.members == 6


def test_a_result_that_no_file_may_hold_is_not_written():
    with pytest.raises(ValidationError, match="seconds"):
        RunState(seconds="long")
    with pytest.raises(ValidationError, match="zone"):
        RunState(started="2026-01-31T12:00:00")
