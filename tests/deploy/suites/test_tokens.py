"""Token sequences and an attack that rebuilds them, both a user's own, stand where images and membership do."""

import io

import pytest
from rich.console import Console
from safetensors.numpy import load_file
from workers_here import WorkersHere

from metaleak.deploy.config.suite import Suite
from metaleak.deploy.report.leaderboard import leaderboard, write_leaderboard
from metaleak.deploy.report.page import write_report
from metaleak.deploy.report.tables import setting_tables
from metaleak.deploy.results.reading import read_suite
from metaleak.deploy.suites.benchmark import benchmark

BASE = {
    "data": "toy_tokens:Sequences",
    "model": "toy_tokens:Embeddings",
    "rule": {"name": "fomaml", "inner_rate": 0.1},
    "task": {"ways": 2},
    "partition": {"learners": 12},
    "server": {"rounds": 2},
    "evaluation": {"tasks": 4, "queries": 2},
    "attacks": ["toy_tokens:Rows", "span"],
    "targets": {"learners": 10},
}
NOISE = {"name": "noise", "scale": 5.0}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "suite"
    workers = WorkersHere()
    benchmark(Suite(name="tokens", base=BASE, grid={"defenses": [[], NOISE]}), path, workers=lambda settings: workers)
    return path


def test_every_token_is_rebuilt_and_few_under_noise(suite):
    result = read_suite(suite)
    write_leaderboard(result)
    rows = {(row["defense"], row["attack"]): row for row in leaderboard(result)}
    bare, noisy = rows["undefended", "toy_tokens:Rows"], rows["shared noise, gaussian", "toy_tokens:Rows"]
    assert {row["measure"] for row in (bare, noisy)} == {"tokens recovered"}
    assert bare["value"] > 0.95
    assert 0 < noisy["value_high"] < 0.5
    assert (bare["asks"], bare["status"]) == ("query", "done")
    assert bare["auc"] > 0.95 > noisy["auc_high"]


def test_an_attack_on_images_does_not_apply(suite):
    refused = [cell for cell in read_suite(suite).cells if cell.attack.startswith("span")]
    assert {cell.status for cell in refused} == {"not applicable"}


def test_what_was_rebuilt_is_kept_beside_what_was_held(suite):
    undefended = next(run for run in read_suite(suite).runs.values() if not run.config["defenses"])
    (attack,) = undefended.attacks
    names = [measure.name for measure in attack.result.measures]
    assert names[:3] == ["tokens recovered", "sequences recovered", "AUC"]
    kept = load_file(undefended.path / "attacks" / attack.name / "reconstructions.safetensors")
    assert kept["truth"].shape == kept["reconstruction"].shape == (20, 6)
    assert len(set(kept["learner"].tolist())) == 10
    assert (kept["truth"] == kept["reconstruction"]).mean() == pytest.approx(attack.result.headline.value)


def test_tables_and_report_show_it(suite):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(*setting_tables(read_suite(suite)))
    text = console.export_text()
    assert "tokens recovered" in text
    assert "AUC" in text
    page = write_report(suite).read_text()
    assert "<h4>Reconstructions</h4>" in page
    assert '<p class="tokens"><span>' in page
    assert "<del>" in page
