"""An attack that does not ask for membership stands in tables, leaderboard and report, by its own headline."""

import io
import json
import re

import pytest
import yaml
from rich.console import Console

from metaleak.attacks.evaluation.measures import Measure
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.deploy.report.leaderboard import leaderboard, write_leaderboard
from metaleak.deploy.report.page import write_report
from metaleak.deploy.report.rows import rows_of
from metaleak.deploy.report.settings import settings
from metaleak.deploy.report.tables import comparison_table, setting_tables
from metaleak.deploy.report.verdict import verdict
from metaleak.deploy.results.json_file import write_json
from metaleak.deploy.results.reading import read_attack, read_suite
from metaleak.deploy.results.schema import AttackResult, Cell, Round, RunState, SuiteState

NOISE = {"name": "noise", "place": "shared", "law": "gaussian", "scale": 1.0}
EVALUATION = evaluate([3.0, 2.0, 1.0, 0.0] * 30, [True, True, False, False] * 30, resamples=20)


def psnr(value):
    return Measure(name="PSNR", value=value, low=value - 1, high=value + 1, headline=True)


def distance(value):
    return Measure(name="distance", value=value, low=value - 0.1, high=value + 0.1, higher_leaks=False, headline=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Two runs, each attacked by `span`, which asks for membership, and by three that reconstruct."""
    path = tmp_path_factory.mktemp("suite")
    cells = []
    for number, (defenses, accuracy, shift) in enumerate([([], 0.9, 0.0), ([NOISE], 0.8, 9.0)]):
        run = path / "runs" / str(number)
        run.mkdir(parents=True)
        experiment = {"name": "x", "model": {"name": "mlp"}, "defenses": defenses}
        (run / "experiment.yaml").write_text(yaml.safe_dump(experiment))
        write_json(run / "run.json", RunState(status="done"))
        line = Round(round=1, accuracy=accuracy, accuracy_low=accuracy - 0.01, accuracy_high=accuracy + 0.01)
        (run / "metrics.jsonl").write_text(line.model_dump_json() + "\n")
        for name, result in {
            "span": AttackResult(asks="query", evaluation=EVALUATION),
            "weak": AttackResult(measured=(psnr(20 - shift),)),
            "strong": AttackResult(measured=(Measure(name="SSIM", value=0.5, low=0.4, high=0.6), psnr(25 - shift))),
            "near": AttackResult(measured=(distance(0.5 + shift),)),
        }.items():
            folder = run / "attacks" / name
            folder.mkdir(parents=True)
            write_json(folder / "attack.json", result.model_copy(update={"attack": {"name": name}}))
            cells.append(Cell(id=f"{number}{name}", run=f"runs/{number}", attack=name, defenses=tuple(defenses)))
    write_json(path / "suite.json", SuiteState(name="mine", cells=tuple(cells)))
    return path


def text(*tables):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(*tables)
    return console.export_text()


def test_every_row_is_done_and_has_its_headline(path):
    rows = {(row.attack, row.defense): row for row in rows_of(read_suite(path))}
    assert {row.status for row in rows.values()} == {"done"}
    assert rows["strong", "undefended"].headline == psnr(25.0)
    assert rows["strong", "undefended"].measure("SSIM").value == 0.5
    assert (rows["span", "undefended"].headline.name, rows["span", "undefended"].headline.value) == ("AUC", 1.0)


def test_the_strongest_is_chosen_among_those_of_one_headline_in_its_direction(path):
    (setting,) = settings(rows_of(read_suite(path)))
    assert setting.measures == ["AUC", "PSNR", "distance"]
    bare, noisy = setting.lines
    assert bare.strongest(measure="PSNR").row.attack == "strong"
    assert bare.strongest().row.attack == "span"
    assert bare.strongest(measure="distance").strength.value == 0.5
    # Noise costs accuracy, and by both headlines less leaks under it: nothing beats either line.
    assert setting.frontier("PSNR") == setting.frontier("distance") == [noisy, bare]


def test_tables_and_verdict_show_the_headlines(path):
    suite = read_suite(path)
    shown = text(*setting_tables(suite))
    assert all(part in shown for part in ("PSNR", "25.0", "16.0", "distance", "9.5"))
    assert re.search(r"PSNR +25\.0 +24\.0–26\.0", text(comparison_table(suite)))
    assert "Against no defense, the strong attack reaches PSNR 25.0, 24.0–26.0." in verdict(rows_of(suite))


def test_the_leaderboard_has_one_headline_a_row(path):
    suite = read_suite(path)
    write_leaderboard(suite)
    rows = {row["cell"]: row for row in leaderboard(suite)}
    found = rows["0strong"]
    assert (found["measure"], found["value"], found["value_low"], found["higher_leaks"]) == ("PSNR", 25.0, 24.0, True)
    assert (found["auc"], found["members"]) == (None, None)
    assert rows["0near"]["higher_leaks"] is False
    assert (rows["0span"]["measure"], rows["0span"]["value"]) == ("AUC", rows["0span"]["auc"])


def test_the_report_shows_them_and_draws_a_frontier_for_each(path):
    page = write_report(path).read_text()
    assert "PSNR 25.0, 24.0–26.0" in page
    assert all(f"strongest attack's {name} (" in page for name in ("AUC", "PSNR", "distance"))
    assert "No attack was evaluated" not in page


@pytest.mark.parametrize("wrong", [{"value": "inf"}, {"name": ""}, {"name": "x" * 41}, {"low": "much"}])
def test_a_measure_from_elsewhere_is_checked(tmp_path, wrong):
    measure = {**psnr(3.0).model_dump(), **wrong}
    (tmp_path / "attack.json").write_text(json.dumps({"measured": [measure]}))
    with pytest.raises(ValueError, match=r"attack\.json: measured\.0\."):
        read_attack(tmp_path)
