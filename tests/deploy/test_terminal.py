"""What commands print fits the terminal: at any width no word is broken and nothing goes over the edge."""

import io
import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from local_grid import local_simulate
from recorded_results import write_run, write_suite
from rich.cells import cell_len
from rich.console import Console

import metaleak.deploy.commands as commands
import metaleak.deploy.pretraining.command as pretraining
from metaleak.deploy.cli import main
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.results.reading import read_suite
from metaleak.deploy.results.schema import AttackResult
from metaleak.deploy.terminal import Grid

EXPERIMENT = {
    "name": "small",
    "data": "digits",
    "task": {"ways": 3},
    "partition": {"learners": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"rounds": 1},
    "evaluation": {"tasks": 5, "queries": 3},
    "targets": {"members": 6, "non_members": 6},
}
HELP = [f"{name} --help" for name in ("", "init", "simulate", "attack", "benchmark", "pretraining", "report")]
HELP += ["audit --help", "audit model --help", "audit defense --help"]
COMMANDS = [
    "init my-experiment.yaml",
    "simulate small.yaml --out runs/small-WIDTH",
    "attack runs/run query --as at-WIDTH --set iterations=1 --set fit=0",
    "attack runs/run query --wide --as wide-WIDTH --set iterations=1 --set fit=0",
    "benchmark suite.yaml --out runs/suite",
    "benchmark suite.yaml --out runs/suite --wide",
    "pretraining study.yaml",
    "report runs/recorded",
    "audit model mlp --input 1x8x8 --set hidden=[8]",
    "audit defense gaussian --set clip=1 --set epsilon=8 --trials 200",
    "simulate --resume runs/nothing-of-this-name-is-here-and-the-name-is-quite-long",
    "attack runs/recorded query --set targets.members=many",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("terminal")
    (path / "small.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (path / "suite.yaml").write_text("name: recorded\ngrid: {}\nbase: {}\n")
    write_suite(path / "runs/suite")
    write_run(path / "runs/recorded", [], 2.0, 0.9)
    local_simulate(experiment_from(EXPERIMENT, "small"), path / "runs/run")
    return path


@pytest.fixture(autouse=True)
def _recorded(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(commands, "simulate", local_simulate)
    monkeypatch.setattr(commands, "benchmark", lambda suite, path, watch, changes: read_suite(path).cells)
    monkeypatch.setattr(commands, "_report", lambda path, out: path / "report.html")
    found = json.loads((folder / "runs/recorded/attacks/query/attack.json").read_text())
    found["attack"]["downstream_accuracy"] = 0.9
    result = AttackResult.model_validate(found)
    monkeypatch.setattr(
        pretraining, "read_study", lambda file, changes: pretraining.Study.model_construct(name="cifar10")
    )
    monkeypatch.setattr(pretraining, "run_study", lambda *_: {"head-only-adapted-lira": result, "whole-tmi": result})


def printed(capsys, monkeypatch, command, width):
    """Return what a command prints on either stream of a terminal of this width."""
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        main(command.split())
    return "".join(capsys.readouterr())


def words(text):
    """Return the words of a text; which of them are numbers that a clock gave is left out."""
    return {
        word for word in re.sub(r"[╭╮╰╯│─━]|(small|at|wide)-\d+", " ", text).split() if not re.fullmatch(r"\d+", word)
    }


@pytest.mark.parametrize("command", [*HELP, *COMMANDS])
def test_no_word_of_a_command_is_broken_and_nothing_goes_over_the_edge(command, capsys, monkeypatch, folder):
    outputs = {}
    narrow = (80, 100, 160) if "--help" in command else (80,)
    for width in (400, *narrow):
        (folder / "my-experiment.yaml").unlink(missing_ok=True)
        outputs[width] = printed(capsys, monkeypatch, command.replace("WIDTH", str(width)), width)
        assert max(map(cell_len, outputs[width].splitlines())) <= width
    assert words(outputs[400])
    for width in narrow:
        parts = {"of", "(1", "(2", "(3", "2)", "3)"}
        assert words(outputs[width]) - words(outputs[400]) <= parts, width


def test_the_help_of_a_command_explains_its_arguments(capsys, monkeypatch):
    said = " ".join(printed(capsys, monkeypatch, "attack --help", 200).split())
    assert "A run directory, or with --app the record of any Flower app." in said


CELLS = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=9)
TEXTS = st.lists(CELLS, max_size=4).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(*[TEXTS] * 6), max_size=4), width=st.integers(40, 120))
def test_a_table_fits_whatever_stands_in_it(rows, width):
    grid = Grid("a title", ["who", "one", "two two", "three", "four", "five"], rows)
    console = Console(width=width, file=io.StringIO())
    console.print(grid)
    shown = console.file.getvalue()
    assert all(cell_len(line) <= width for line in shown.splitlines())
    assert {word for row in rows for cell in row for word in cell.split()} <= words(shown) | {"─"} | set(
        shown.split()
    )


def test_color_is_left_out_where_it_is_not_wanted(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in printed(capsys, monkeypatch, "audit model mlp --input 1x8x8 --set hidden=[8]", 80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(
        r"\x1b\[[0-9;]*3[0-9]m", printed(capsys, monkeypatch, "benchmark suite.yaml --out runs/suite", 80)
    )


@pytest.mark.parametrize(
    "command",
    ["report runs/recorded --json", "benchmark suite.yaml --out runs/suite --json", "pretraining s.yaml --json"],
)
def test_json_is_one_document(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(command.split())
    assert json.loads(capsys.readouterr().out)
