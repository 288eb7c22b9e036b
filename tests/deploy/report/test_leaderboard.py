"""The leaderboard: one row a cell, the same in Parquet and JSON, with documented columns."""

import json
import math
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from workers_here import WorkersHere

from metaleak.deploy.config.suite import Suite
from metaleak.deploy.report.leaderboard import COLUMNS, write_leaderboard
from metaleak.deploy.results.reading import read_suite
from metaleak.deploy.suites.benchmark import benchmark

PAGE = Path(__file__).parents[3] / "docs" / "benchmark.md"
SUITE = Suite(
    name="board",
    base={
        "data": "digits",
        "task": {"ways": 3},
        "partition": {"learners": 6},
        "model": {"name": "mlp", "hidden": [8]},
        "server": {"rounds": 2},
        "evaluation": {"tasks": 5, "queries": 3},
        "attacks": [{"name": "query", "iterations": 3, "fit": 0}],
        "targets": {"members": 18, "non_members": 200},
    },
    grid={"defenses": [None, {"name": "gaussian", "clip": 1.0, "epsilon": 8.0}, {"name": "pruning", "keep": 0.1}]},
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("board")
    benchmark(SUITE, path, workers=WorkersHere)
    return write_leaderboard(read_suite(path)).parent


def test_every_cell_has_a_row_with_all_that_identifies_and_measures_it(path):
    rows = json.loads((path / "leaderboard.json").read_text())["rows"]
    assert [row["defense"].split(" (")[0] for row in rows] == ["undefended", "Gaussian mechanism", "pruning"]
    for row in rows:
        assert (row["data"], row["model"], row["rule"], row["ways"], row["shots"], row["learners"]) == (
            "digits",
            "mlp",
            "maml",
            3,
            1,
            6,
        )
        assert (row["attack"], row["asks"], row["knows"], row["status"]) == ("query", "query", "labels", "done")
        assert json.loads(row["attack_settings"])["iterations"] == 3
        assert 0 <= row["auc_low"] <= row["auc"] <= row["auc_high"] <= 1
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["tpr_0.001"] is None, "200 non-members do not tell 0.1 %"
        assert 0 <= row["tpr_0.01"] <= 1
        assert row["run_seconds"] > 0
        assert row["attack_seconds"] > 0
        assert (path / row["run"] / "attacks" / row["result"] / "attack.json").exists()
    assert [row["epsilon_accounted"] is None for row in rows] == [True, False, True]
    assert [row["epsilon_lower_bound_gaussian"] is None for row in rows] == [True, False, True]
    assert rows[2]["bytes_per_learner"] < rows[0]["bytes_per_learner"] == rows[0]["dense_bytes"]


def test_parquet_and_json_say_the_same(path):
    table = pq.read_table(path / "leaderboard.parquet")
    described = json.loads((path / "leaderboard.json").read_text())
    assert table.to_pylist() == described["rows"]
    assert table.column_names == list(described["columns"]) == list(COLUMNS)
    assert table.schema.field("auc").metadata[b"about"].decode() == COLUMNS["auc"][1]


def test_a_cell_that_failed_is_told_by_what_was_planned(tmp_path, monkeypatch):
    changes = ["data={name: mnist, data_dir: /nowhere}", "data.download=false"]
    benchmark(SUITE, tmp_path, changes=changes, workers=WorkersHere)
    write_leaderboard(read_suite(tmp_path))
    rows = pq.read_table(tmp_path / "leaderboard.parquet").to_pylist()
    assert {(row["status"], row["data"], row["model"], row["learners"], row["attack"]) for row in rows} == {
        ("failed", "mnist", "mlp", 6, "query")
    }
    assert all(row["error"] and row["auc"] is None for row in rows)
    assert not any(isinstance(value, float) and math.isnan(value) for row in rows for value in row.values())


def test_the_page_has_every_column():
    section = PAGE.read_text().partition("## The leaderboard")[2]
    documented = dict(re.findall(r"^\| `([a-z_0-9.]+)` \| (.*) \|$", section, re.MULTILINE))
    assert documented == {name: about for name, (_, about) in COLUMNS.items()}
