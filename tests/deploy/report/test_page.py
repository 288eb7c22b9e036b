"""The report of synthetic runs and suites: complete, self-contained, safe, and clean in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import CONTRAST, OVERFLOW, Browser, browser, chromium
from recorded_results import GRID, PRIVACY, noise, write_attack, write_run, write_suite
from rich.console import Console
from safetensors.numpy import save_file
from workers_here import WorkersHere

from metaleak.deploy.assess.truth import Truth
from metaleak.deploy.config.defense_words import describe_defenses
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.report.figures import Curve, log_roc
from metaleak.deploy.report.leaderboard import leaderboard
from metaleak.deploy.report.page import RunPage, facts, write_report
from metaleak.deploy.report.rows import Row, comparison_rows, rows_of
from metaleak.deploy.report.settings import Line, Setting, settings
from metaleak.deploy.report.tables import comparison_table, setting_tables
from metaleak.deploy.report.verdict import answer, describe, verdict
from metaleak.deploy.results.arrays import Gallery
from metaleak.deploy.results.reading import AttackFiles, RunResult, SuiteResult, read, read_run, read_suite
from metaleak.deploy.suites.benchmark import benchmark
from metaleak.deploy.terminal import Grid

SECTIONS = ("summary", "settings", "frontier", "comparison", "roc", "training", "galleries", "limits", "runs")
TITLE = "mlp on digits, 5-way 1-shot 1-query"


class Page(HTMLParser):
    """Collects what a page refers to and how it is built."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def suite_report(suite: Path) -> Path:
    return write_report(suite)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", [], 2.0, 0.9)


def test_a_run_has_every_section_and_figure(run: Path) -> None:
    heard: list[tuple[int, int]] = []
    assert write_report(run, progress=lambda done, total: heard.append((done, total))) == run / "report.html"
    assert heard == [(1, 1)]
    page = Page((run / "report.html").read_text())
    assert [section["id"] for section in page.all("section")] == list(SECTIONS)
    # A frontier, ROC curves of two attacks, and two training curves.
    assert len(page.all("svg")) == 5
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in page.all("svg"))
    assert len(page.all("img")) == 2 * 12 * 4
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/png") for image in page.all("img"))
    assert page.all("caption")


def test_a_suite_compares_judges_and_lists_what_failed(suite_report: Path) -> None:
    text = suite_report.read_text()
    assert text.count("<tr>") > len(GRID) * 2
    for expected in (
        "Without a defense, the query attack tells members from non-members almost always",
        "The cheapest is shared noise, gaussian, scale 1 (AUC 0.",
        "actor died: no memory",
        "needs ≥ 1 000 non-members",
        "adapted accuracy (right is better)",
        "torch",
        "inner_steps: 1",
        "does and does not tell you",
    ):
        assert expected in text, expected


def test_the_page_needs_nothing_beside_it(suite_report: Path) -> None:
    text = suite_report.read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert str(suite_report.parent) not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    page = Page(text)
    assert page.all("script") == [{}]
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_references_inside_figures_lead_somewhere_and_identifiers_are_unique(suite_report: Path) -> None:
    text = suite_report.read_text()
    identifiers = [attributes["id"] for _, attributes in Page(text).tags if "id" in attributes]
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(identifiers)
    assert len(identifiers) == len(set(identifiers))


def test_a_statistic_that_leaks_more_than_the_score_is_not_passed_over(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    for path in suite.rglob("attack.json"):
        described = json.loads(path.read_text())
        found = {"value": 0.01, "low": 0.0, "high": 0.02}
        path.write_text(json.dumps({**described, "statistics": {"outside_prior": found}}))
    rows = comparison_rows(read_suite(suite))
    defended = [row for row in rows if row.evaluation and row.evaluation.auc.value < 0.6]
    assert defended
    assert all(row.revealing == ("outside_prior", 0.99) for row in defended)
    said = " ".join(verdict(rows))
    assert "only seems to fail: its statistic outside_prior alone reaches AUC 0.990" in said
    assert "None of the" in said
    assert "but outside_prior 0.990" in write_report(suite).read_text()


def test_the_same_results_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run, tmp_path / "b.html").read_bytes()


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>$x^{'
    defense = [{"name": evil, "scale": 1.0}]
    run = write_run(tmp_path / "run", defense, 1.0, 0.9, name=evil, model={"name": evil})
    attack = json.loads((run / "attacks/query/attack.json").read_text())
    attack |= {"knows": evil, "attack": {evil: evil}}
    (run / "attacks/query/attack.json").write_text(json.dumps(attack))
    (run / "attacks/support").rename(run / "attacks/<b onload=x>[bold]")
    text = write_report(run).read_text()
    page = Page(text)
    assert page.all("script") == [{}]
    assert not page.all("b onload=x")
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert "&lt;script&gt;alert(1)" in text
    console = Console(width=300, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(comparison_table(read_run(run)))
    assert "[bold]" in console.export_text()


def test_missing_parts_leave_gaps_not_errors(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "interrupted", "error": "stopped by the user"}')
    text = write_report(tmp_path).read_text()
    assert "stopped by the user" in text
    (tmp_path / "metrics.jsonl").write_text('{"round": 1, "loss": NaN}\n{"round": 2, "lo')
    (tmp_path / "attacks" / "query").mkdir(parents=True)
    assert [line.round for line in read_run(tmp_path).rounds] == [1]
    write_report(tmp_path)


def test_a_run_without_attacks_is_whole_but_a_cell_without_its_attack_is_not(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "attacks")
    (run / "metrics.jsonl").write_text('{"round": 4, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}')
    assert "failed" not in [section.get("id") for section in Page(write_report(run).read_text()).all("section")]
    (tmp_path / "suite.json").write_text(json.dumps({"cells": [{"id": "0", "run": "run", "attack": "query"}]}))
    assert "not attacked" in write_report(tmp_path).read_text().split('id="failed"')[1]


def test_a_long_run_with_gaps_is_drawn(run: Path) -> None:
    lines = [{"round": n, "loss": None if n % 7 == 0 else 1 / n, "accuracy": 0.5} for n in range(1, 2500)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "means of 3" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("run.json", b"{", "not JSON"),
        ("run.json", b'{"status": "great"}', "status"),
        ("run.json", b"\xff", "not UTF-8"),
        ("run.json", b"[" * 100_000, "not JSON"),
        ("run.json", b" " * (1 << 21), "more than"),
        ("experiment.yaml", b"a: [", "not YAML"),
        ("experiment.yaml", b"- 1", "mapping"),
        ("experiment.yaml", b"!!python/object/apply:os.system ['true']", "not YAML"),
        ("metrics.jsonl", b'{"round": 1}\noops\n', "line 2"),
        ("metrics.jsonl", b'{"round": 1, "accuracy": 3}\n', "line 1: accuracy"),
        ("attacks/query/attack.json", b'{"evaluation": {"auc": 2}}', "evaluation"),
        ("attacks/query/scores.parquet", b"PAR1", "Parquet"),
        ("attacks/query/gallery.safetensors", b"\xff" * 64, "safetensors"),
    ],
)
def test_a_damaged_part_is_one_line_that_names_it(run: Path, part: str, content: bytes, message: str) -> None:
    (run / part).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        write_report(run)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()
    assert not list(run.glob(".report*"))


def test_arrays_that_do_not_fit_are_refused(run: Path) -> None:
    folder = run / "attacks" / "query"
    pq.write_table(pa.table({"score": [1.0, np.nan], "member": [True, False]}), folder / "scores.parquet")
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        read_run(run)
    pq.write_table(pa.table({"score": ["1"], "member": [True]}), folder / "scores.parquet")
    with pytest.raises(ValueError, match="score"):
        read_run(run)
    (folder / "scores.parquet").unlink()
    images = np.zeros((2, 1, 4, 4), np.float32)
    arrays = {"prior": images, "reconstruction": images, "truth": images[:1], "score": np.zeros(2, np.float32)}
    save_file({**arrays, "member": np.zeros(2, np.uint8)}, folder / "gallery.safetensors")
    with pytest.raises(ValueError, match="truth"):
        read_run(run)
    save_file({"prior": images}, folder / "gallery.safetensors")
    with pytest.raises(ValueError, match="no member"):
        read_run(run)


def test_a_suite_cannot_point_outside_itself(tmp_path: Path) -> None:
    for outside in ("../elsewhere", "/etc"):
        cells = [{"id": "0", "run": outside, "attack": "query"}]
        (tmp_path / "suite.json").write_text(json.dumps({"cells": cells}))
        with pytest.raises(ValueError, match="outside"):
            read_suite(tmp_path)


def test_what_is_neither_a_run_nor_a_suite_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="no such directory"):
        write_report(tmp_path / "absent")


def test_rows_stand_undefended_first_then_by_scale(suite: Path) -> None:
    result = read(suite)
    assert isinstance(result, SuiteResult)
    assert len(result.runs) == len(GRID)
    rows = [row for row in comparison_rows(result) if row.attack == "query" and row.run]
    assert (rows[0].defense, rows[0].scale) == ("undefended", "")
    assert [row.scale for row in rows if row.defense == "shared noise, gaussian"] == ["0.1", "1", "10"]
    assert {row.setting for row in rows} == {""}


def test_rows_say_in_what_else_they_differ(tmp_path: Path) -> None:
    cells = []
    for ways in (2, 5):
        write_run(tmp_path / f"runs/{ways}", [], 1.0, 0.9, task={"ways": ways, "shots": 1}, name=f"n{ways}")
        cells.append({"id": str(ways), "run": f"runs/{ways}", "attack": "query"})
    (tmp_path / "suite.json").write_text(json.dumps({"cells": cells}))
    assert [row.setting for row in comparison_rows(read_suite(tmp_path))] == ["ways 2", "ways 5"]


def test_the_terminal_table_has_every_row_and_says_what_is_unresolved(suite: Path) -> None:
    table = comparison_table(read(suite))
    assert table.row_count == len(GRID) * 2 + 1
    console = Console(width=240, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(comparison_table(read(suite), wide=True))
    text = console.export_text()
    for expected in (
        "needs ≥ 1 000",
        "actor died",
        "0.1% FPR needs ≥ 1 000 non-members",
        "shared noise, gaussian",
        "120 + 120",
    ):
        assert expected in text


def shown(*tables: Grid) -> str:
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(*tables)
    return console.export_text()


def changed_attack(path: Path, **changes: Any) -> None:
    described = json.loads((path / "attack.json").read_text())
    (path / "attack.json").write_text(json.dumps({**described, **changes}))


def test_a_setting_has_one_line_a_defense_with_its_strongest_attacks(suite: Path) -> None:
    (setting,) = settings(rows_of(read_suite(suite)))
    assert setting.title == TITLE
    assert [line.defense for line in setting.lines] == [
        "no defense",
        *(f"shared noise, gaussian, scale {scale}" for scale in ("0.1", "1", "10")),
        *(f"support noise, laplace, scale {scale}" for scale in ("0.1", "1")),
        "inner noise, gaussian, scale 1",
        "query noise, laplace, scale 5",
    ]
    bare = setting.lines[0]
    assert {which: bare.strongest(which).row.attack for which in ("query", "support")} == {
        "query": "query",
        "support": "support",
    }
    assert bare.strongest() == bare.strongest("query")
    assert (setting.lines[-1].strongest(), setting.lines[-1].troubles) == (None, ["query: failed"])
    # By accuracy: 0.55 at no leak, 0.91 at little, then 0.925 and 0.93 at more and more; all others are beaten.
    assert [line.rows[0].scale for line in setting.frontier()] == ["10", "1", "0.1", ""]


def test_the_strongest_attack_is_by_its_auc_and_a_reversed_one_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [], 1.0, 0.9)
    random = np.random.default_rng(0)
    for name, shift in (("weaker", 0.3), ("backwards", -3.0)):
        write_attack(run / "attacks" / name, name, shift, random)
        changed_attack(run / "attacks" / name, asks="query")
    ((line,),) = [setting.lines for setting in settings(rows_of(read_run(run)))]
    found = line.strongest("query")
    assert found is not None
    assert (found.row.attack, found.reversed) == ("backwards", True)
    assert found.strength.value == 1 - found.row.evaluation.auc.value > 0.95
    assert line.strongest("support").row.attack == "support"


def test_the_tables_of_a_suite_say_what_was_paid_promised_and_known(suite: Path, tmp_path: Path) -> None:
    copy = tmp_path / "suite"
    shutil.copytree(suite, copy)
    for attack in ("query", "support"):
        promise = {**PRIVACY, "accounted": 8.0, "lower_bound": 9.5 if attack == "query" else 0.5}
        changed_attack(copy / f"runs/0001/attacks/{attack}", privacy=promise)
    text = shown(*setting_tables(read_suite(copy), wide=True))
    for expected in (
        TITLE,
        "no defense *",
        "1.2MB, 25%",
        "≥0.25",
        "≥9.50, ≤8",
        "query: failed",
        "the adversary of query knows labels",
    ):
        assert expected in text, expected
    page = write_report(copy).read_text()
    assert "≥ 9.50, ≤ 8" in page
    assert "1.2 MB (25 %)" in page
    assert "query knows, beside what the server sees: labels." in page


def test_a_rule_that_protects_is_a_defense_in_the_same_setting(tmp_path: Path) -> None:
    cells = []
    for name, order, defenses in (
        ("maml", 2, []),
        ("fomaml", 1, []),
        ("fomaml", 1, noise("shared", "gaussian", 2.0)),
    ):
        path = f"runs/{len(cells)}"
        write_run(tmp_path / path, defenses, 1.0, 0.9, rule={"name": name, "order": order, "adapts": "all"})
        cells.append({"id": path, "run": path, "attack": "query", "defenses": defenses})
    (tmp_path / "suite.json").write_text(json.dumps({"cells": cells}))
    (setting,) = settings(rows_of(read_suite(tmp_path)))
    assert [line.defense for line in setting.lines] == [
        "no defense",
        "first-order MAML",
        "first-order MAML + shared noise, gaussian, scale 2",
    ]


def test_settings_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    cells = []
    for hidden, learners in (([64], 10), ([64], 100), ([256], 100)):
        path = f"runs/{len(cells)}"
        changes = {"model": {"name": "mlp", "hidden": hidden}, "partition": {"learners": learners}}
        write_run(tmp_path / path, [], 1.0, 0.9, **changes)
        cells.append({"id": path, "run": path, "attack": "query"})
    (tmp_path / "suite.json").write_text(json.dumps({"cells": cells}))
    assert [setting.title for setting in settings(rows_of(read_suite(tmp_path)))] == [
        f"{TITLE}, 10 learners, hidden [64]",
        f"{TITLE}, 100 learners, hidden [64]",
        f"{TITLE}, 100 learners, hidden [256]",
    ]


SMALL: dict[str, Any] = {
    "data": "digits",
    "task": {"ways": 3},
    "partition": {"learners": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"rounds": 3},
    "evaluation": {"tasks": 5, "queries": 3},
    "attacks": [{"name": "query", "iterations": 1, "fit": 0}],
    "targets": {"members": 6, "non_members": 6},
}


@pytest.mark.parametrize(
    ("axis", "values", "words"),
    [
        ("targets.round", ["first", 2, "last"], "round attacked"),
        ("targets.members", [2, 4, 6], "members asked"),
    ],
)
def test_a_suite_that_varies_its_targets_tells_them_apart(axis, values, words, tmp_path: Path) -> None:
    varied = Suite(name="targets", base=SMALL, grid={"defenses": [None, "sign"], axis: values})
    cells = benchmark(varied, tmp_path, workers=WorkersHere)
    assert [cell.status for cell in cells] == ["done"] * 6
    result = read_suite(tmp_path)
    expected = {f"{words} {value}" for value in values}
    assert {row.setting for row in rows_of(result)} == expected
    found = settings(rows_of(result))
    assert {setting.title.rpartition(", ")[2] for setting in found} == expected
    assert [len(setting.lines) for setting in found] == [2, 2, 2]
    assert len({(row["rounds"], row["round"], row["members"]) for row in leaderboard(result)}) == 3
    text = write_report(tmp_path).read_text()
    counts = dict.fromkeys(f"{row['members']} members + 6 non-members" for row in leaderboard(result))
    assert f"<dt>targets</dt><dd>{'; '.join(counts)}</dd>" in text, "what was asked, not what was planned"
    for value in expected:
        assert f"query attack, {value}</text>" in text
        assert f"the query attack ({value})" in text
    assert f"query attack · no defense ({words} {values[0]})</summary>" in text
    assert all(value in shown(*setting_tables(result)) for value in expected)


def test_the_targets_of_a_cell_without_a_result_are_those_that_were_planned(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/0", [], 1.0, 0.9, targets={"rounds": 1})
    done = {"id": "0", "run": "runs/0", "attack": "query", "experiment": {"targets": {"rounds": 1}}}
    failed = {**done, "id": "1", "attack": "query-2", "status": "failed", "error": "no memory"}
    failed |= {"experiment": {"targets": {"rounds": 20}}, "attack_config": {"name": "query"}}
    (tmp_path / "suite.json").write_text(json.dumps({"cells": [done, failed]}))
    assert [row.setting for row in rows_of(read_suite(tmp_path))] == ["rounds attacked 1", "rounds attacked 20"]


def test_a_key_that_says_nothing_is_no_fact() -> None:
    assert facts({"name": "x", "record": {"rounds": None}, "task": {"ways": 3}}) == [("task", "ways 3")]


def test_curves_of_one_color_are_told_apart_by_their_dashes() -> None:
    scores, member = np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True])
    curves = [Curve(f"scale {scale}", "noise", scores + scale, member) for scale in range(3)]
    drawn = log_roc("query attack", curves).svg
    assert len(set(re.findall(r"stroke-dasharray: ([^;]+)", drawn))) >= 3
    # Names for people who see the panel: what does not fit into one line goes on in the next.
    assert (
        "rounds attacked 20"
        in log_roc("a name of more than forty characters, 100 learners, rounds attacked 20", curves).svg
    )


def test_results_that_hold_arrays_are_compared_as_objects() -> None:
    """Compared by value, arrays raise: `==`, `in` and `index` of what holds them must not look inside."""
    holding = [AttackFiles, Curve, Gallery, Line, Row, RunPage, RunResult, Setting, SuiteResult, Truth]
    assert [one.__name__ for one in holding if one.__eq__ is not object.__eq__] == []


def test_defenses_are_named_with_their_scales() -> None:
    assert describe_defenses([]) == ("undefended", "")
    assert describe_defenses(noise("inner", "laplace", 0.5)) == ("inner noise, laplace", "0.5")
    both = [*noise("query", "gaussian", 1.0), {"name": "clip", "norm": 2}]
    assert describe_defenses(both) == ("query noise, gaussian + clip (norm)", "1 + 2")
    # Of several numbers none stands for the scale.
    assert describe_defenses([{"name": "mine", "low": 1, "high": 2}]) == ("mine, low 1, high 2", "")


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        (
            {"name": "gaussian", "clip": 1.0, "epsilon": 8.0, "noise_multiplier": None, "delta": 1e-5},
            ("Gaussian mechanism (epsilon), clip 1, delta 1e-05", "8"),
        ),
        (
            {"name": "gaussian", "place": "shared", "clip": 0.5, "noise_multiplier": 2, "unit": "image"},
            ("Gaussian mechanism (noise multiplier), clip 0.5, unit image", "2"),
        ),
        ({"name": "pruning", "place": "shared", "keep": 0.1}, ("pruning (part kept)", "0.1")),
        (
            {"name": "quantization", "place": "shared", "bits": 4, "stochastic": True},
            ("quantization (bits), stochastic yes", "4"),
        ),
        ({"name": "sign", "place": "shared"}, ("sign and mean magnitude alone", "")),
        (
            {"name": "selection", "place": "shared", "names": ["head.*", "*.bias"]},
            ("selected layers alone, names head.* *.bias", ""),
        ),
        ({"name": "secure-aggregation", "place": "aggregate"}, ("secure aggregation (ideal functionality)", "")),
    ],
)
def test_every_defense_has_words_and_the_number_that_a_grid_varies(defense, words) -> None:
    assert describe_defenses([defense]) == words
    noisy = [*noise("query", "gaussian", 1.0), defense]
    scales = " + ".join(scale for scale in ("1", words[1]) if scale)
    assert describe_defenses(noisy) == (f"query noise, gaussian + {words[0]}", scales)


def test_the_verdict_does_not_praise_a_reversed_attack_or_an_unknown_cost(tmp_path: Path) -> None:
    reversed_run = write_run(tmp_path / "run", [], -2.0, 0.9)
    assert "below non-members" in describe(comparison_rows(read_run(reversed_run))[0])
    for index, (defenses, shift) in enumerate([([], 2.0), (noise("shared", "gaussian", 1.0), -2.0)]):
        write_run(tmp_path / f"suite/runs/{index}", defenses, shift, 0.9)
    cells = [{"id": str(index), "run": f"runs/{index}", "attack": "query"} for index in range(2)]
    (tmp_path / "suite/suite.json").write_text(json.dumps({"cells": cells}))
    assert "None of the 1 defended runs" in verdict(comparison_rows(read_suite(tmp_path / "suite")))[-1]
    (tmp_path / "suite/runs/0/metrics.jsonl").unlink()
    assert "is unknown" in verdict(comparison_rows(read_suite(tmp_path / "suite")))[-1]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_real_browser_shows_it_whole_in_every_window_and_scheme(
    suite_report: Path, opened: Browser, width: int, dark: bool
) -> None:
    opened.open(suite_report.as_uri(), width, dark)
    opened.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert opened.complaints == []
    assert opened.value(OVERFLOW) == []
    assert opened.value(CONTRAST) == []
    shown = "getComputedStyle(document.querySelector('.point .tip')).visibility"
    assert opened.value(shown) == "hidden"
    opened.point_at(".point .near")
    assert opened.value(shown) == "visible"
    assert opened.value("document.querySelector('.point .tip').textContent").startswith("no defense")


def test_the_browser_would_see_what_is_pale_or_too_wide(opened: Browser, tmp_path: Path) -> None:
    page = "<body><main><p style='color: #aaa'>pale</p><p style='width: 3000px'>wide</p></main></body>"
    (tmp_path / "page.html").write_text(page)
    opened.open((tmp_path / "page.html").as_uri(), 400, False)
    assert [found.partition(":")[0] for found in opened.value(CONTRAST)] == ["P pale"]
    assert len(opened.value(OVERFLOW)) == 2


def test_tables_are_sorted_by_their_headings_and_rows_lead_to_runs(suite_report: Path, opened: Browser) -> None:
    opened.open(suite_report.as_uri(), 1280, False)
    opened.value("document.querySelectorAll('#settings thead th')[3].click()")
    cells = "[...document.querySelectorAll('#settings tbody tr')].map((row) => row.cells[3].textContent)"
    accuracies = [float(text.split()[0]) for text in opened.value(cells) if text.strip() != "–"]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] < accuracies[-1]
    link = "document.querySelector('#comparison tbody a[href^=\"#run-\"]')"
    opened.value(f"{link}.click()")
    assert opened.value(f"document.querySelector({link}.getAttribute('href')).checkVisibility()")


def test_a_defense_has_one_color_in_all_figures(suite_report: Path) -> None:
    text = suite_report.read_text()
    used: dict[str, set[str]] = {}
    point = r'class="point"[^>]* aria-label="([^"]+)">.*?var\(--(c\d)\)'
    for said, color in re.findall(point, text, re.DOTALL):
        words = said.partition(", accuracy")[0].partition(", TPR")[0]
        if not said.startswith("round "):
            used.setdefault(words, set()).add(color)
    assert len(used) > 2
    assert all(len(colors) == 1 for colors in used.values()), used


def test_every_figure_has_its_numbers_beside_it(suite_report: Path) -> None:
    text = suite_report.read_text()
    panels = text.split('<div class="panel">')[1:]
    assert len(panels) == text.count("<svg ")
    assert all("<table" in panel.partition("</details>")[0] for panel in panels)


def test_what_a_perfect_attack_can_prove_at_most_is_explained(suite: Path, tmp_path: Path) -> None:
    copy = tmp_path / "suite"
    shutil.copytree(suite, copy)
    changed_attack(copy / "runs/0000/attacks/query", privacy={**PRIVACY, "lower_bound": 0.91, "ceiling": 0.91})
    page = write_report(copy).read_text()
    assert "no attack on so few targets can prove more" in page
    assert "An epsilon of 0.91 is all that a perfect attack can prove" in page


def test_the_page_opens_with_an_answer_and_says_when_by_what_and_how_it_was_made(suite: Path) -> None:
    said = answer(settings(rows_of(read_suite(suite))))
    assert len(said) == 3
    assert said[0].startswith("Without a defense, the query attack tells members from non-members almost always")
    assert said[1].startswith(
        "2 of 6 defenses keep every attack below an AUC of 0.60; shared noise, gaussian, scale 1"
    )
    assert "guarantee" in said[2]
    top = write_report(suite).read_text().partition("<nav")[0]
    assert "2025-01-01 · <code>metaleak benchmark suite.yaml</code>" in " ".join(top.split())
