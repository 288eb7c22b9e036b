"""A suite of pretraining studies: every combination once, no model trained twice, the same tables and files."""

import json
from contextlib import nullcontext

import pytest
from rich.console import Console

from metaleak.attacks.work import map_here
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.errors import WrongUsage
from metaleak.deploy.pretraining import shadow_models
from metaleak.deploy.report.leaderboard import write_leaderboard
from metaleak.deploy.report.page import write_report
from metaleak.deploy.report.rows import rows_of
from metaleak.deploy.report.settings import settings
from metaleak.deploy.report.tables import comparison_table, setting_tables
from metaleak.deploy.report.verdict import answer
from metaleak.deploy.results.reading import read_suite
from metaleak.deploy.simulate.run_directory import held
from metaleak.deploy.suites.studies import benchmark_studies

ATTACKS = "metaleak.attacks.pretraining"
BASE = {
    "pool": {"data": "mnist-5k", "classes": [0, 1, 2], "examples": 60},
    "downstream": {"data": "mnist-5k", "classes": [5, 6, 7], "examples": 60},
    "model": {"name": "mlp", "hidden": [8]},
    "pretraining": {"epochs": 3},
    "finetunings": {"head": {}, "private": {"private": {"epsilon": 2.0, "steps": 2}}},
    "models": 5,
    "points": 40,
    "attacks": [f"{ATTACKS}.gaussian_ratio:GaussianRatio", f"{ATTACKS}.white_box:WhiteBoxLiRA"],
    "engine": {"device": "cpu"},
}


def suite(**axes):
    return Suite(name="mine", kind="pretraining", base=BASE, grid=axes)


def benchmark(what, out, **settings):
    return benchmark_studies(what, out, models=lambda study: nullcontext(map_here), **settings)


@pytest.fixture
def trained(monkeypatch):
    """Count the models that are pretrained."""
    counts = []

    def counted(model, starts, *rest, inner=shadow_models.train):
        counts.extend(starts)
        return inner(model, starts, *rest)

    monkeypatch.setattr(shadow_models, "train", counted)
    return counts


def text_of(table):
    console = Console(width=300)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_a_suite_of_studies_has_the_tables_of_any_other_and_trains_no_model_twice(tmp_path, trained):
    told = []
    grid = suite(**{"downstream.examples": [40, 60], "queries.access": ["all", 1]})
    cells = benchmark(grid, tmp_path, on_cell=lambda done, total: told.append((done, total)))
    # Two sizes, two accesses, two finetunings, two attacks; all on the same five starts.
    assert len(cells) == 16
    assert {cell.status for cell in cells} == {"done"}
    assert len(trained) == 5
    assert (told[0], told[-1]) == ((0, 16), (16, 16))
    found = read_suite(tmp_path)
    learned, *_ = tables = [text_of(table) for table in setting_tables(found)]
    assert len(tables) == 4  # what attacks learn, and what defenses cost, of two settings
    assert "mlp on mnist-5k, finetuned on mnist-5k, examples 40" in learned
    for part in (
        "start",
        "no defense",
        "cut answers, shown 1",
        "private finetuning, epsilon 2",
        "GaussianRatio",
    ):
        assert part in learned
    # The ceiling is no attacker's, and stands in the table of all attacks alone.
    assert "query" not in learned
    cells = [str(cell) for table in setting_tables(found) for row in table.rows for cell in row]
    assert not any("WhiteBox" in cell for cell in cells)
    assert "WhiteBox" not in " ".join(answer(settings(rows_of(found))))
    assert "WhiteBoxLiRA" in text_of(comparison_table(found))
    rows = json.loads(write_leaderboard(found).with_suffix(".json").read_text())["rows"]
    assert len(rows) == 16
    assert {(row["data"], row["downstream"], row["asks"], row["clusters"]) for row in rows} == {
        ("mnist-5k", "mnist-5k", "start", 5)
    }
    assert all(row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] for row in rows)
    page = write_report(tmp_path).read_text()
    assert "5 released models resampled" in page
    assert "private finetuning" in page
    # What has no learners and no messages is not told in their words.
    assert "downstream accuracy" in page.lower()
    for part in ("adapted accuracy", "bytes a learner", "meta-training"):
        assert part not in page.lower()
        assert not any(part in table.lower() for table in tables)


def test_a_second_call_makes_what_is_missing_alone(tmp_path, trained):
    first = benchmark(suite(), tmp_path)
    results = sorted(tmp_path.glob("runs/*/attacks/*/attack.json"))
    assert len(results) == len(first) == 4
    before = {path: path.stat().st_mtime_ns for path in results}
    results[0].unlink()

    def refuses(study):
        raise AssertionError("a worker was started")

    again = benchmark(suite(), tmp_path)
    assert [cell.model_dump() for cell in again] == [cell.model_dump() for cell in first]
    after = {path: path.stat().st_mtime_ns for path in results}
    assert [path for path in results if after[path] != before[path]] == results[:1]
    assert len(trained) == 5
    assert benchmark_studies(suite(), tmp_path, models=refuses) == again


def test_what_fails_is_named_and_stops_nothing_else(tmp_path):
    cells = benchmark(suite(**{"pool.classes": [[0, 1, 2], [0, 100]]}), tmp_path)
    failed = [cell for cell in cells if cell.status == "failed"]
    assert len(failed) == 4
    assert {cell.error for cell in failed} == {"pool.classes: 100 is not one of the 10 classes"}
    assert len(setting_tables(read_suite(tmp_path))) == 4


@pytest.mark.parametrize(
    ("axes", "changes", "problem"),
    [
        ({"rules": ["maml"]}, (), "grid: unknown key 'rules'"),
        ({"points": [1]}, (), "suite mine: points"),
        ({}, ("victims=9",), "suite mine: victims: must be at most the 5 models, got 9"),
        ({}, ("victims",), "must be key=value"),
    ],
)
def test_a_wrong_suite_is_refused_in_one_line(tmp_path, axes, changes, problem):
    with pytest.raises(WrongUsage, match=problem) as caught:
        benchmark(suite(**axes), tmp_path / "out", changes=changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_change_of_the_data_is_one_of_both_parts_and_two_processes_exclude_each_other(tmp_path):
    with pytest.raises(WrongUsage, match=r"suite mine: pool\.data"):
        benchmark(suite(), tmp_path, changes=("data.nothing=1",))
    with held(tmp_path, "this suite"), pytest.raises(ValueError, match="another process is working on this suite"):
        benchmark(suite(), tmp_path)
