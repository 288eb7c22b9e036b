"""What the pages show as code is code: every block, every command, and every file, key and name in their text."""

import argparse
import ast
import re
import runpy
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pandas as pd
import pytest
import yaml
from local_grid import local_simulate
from pages import PAGES, ROOT, blocks, commands, words_in_text
from typer.main import get_command

import metaleak.deploy.simulate.launch as launch
from metaleak.deploy.cli import app, main
from metaleak.deploy.config.app import read_app
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import attack_from, read_experiment
from metaleak.deploy.config.suite import read_suite_file
from metaleak.deploy.pretraining.reading import read_study, studies_of
from metaleak.deploy.pretraining.study import Study
from metaleak.deploy.report.leaderboard import COLUMNS

BENCHMARKS = ROOT / "tests/benchmarks"
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# Programs of others, which have no dry run.
OTHERS = {"export", "cd", ".", "docker", "ray", "for", "./make-credentials.sh"}
TOP = {"attacks", "clients", "defenses", "deploy", "docs", "examples", "server", "tests"}
BLOCKS = [block for page in PAGES for block in blocks(page)]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def of_language(*languages):
    return pytest.mark.parametrize("block", [one for one in BLOCKS if one.language in languages], ids=str)


class Reached(Exception):
    """Ends a script where it would read its options with `parser`."""

    def __init__(self, parser, *_):
        self.parser = parser


@pytest.fixture(scope="module")
def parser_of():
    """Return a function that returns the parser of a script in `tests/benchmarks`, or None where it has none."""
    known = {}

    def reach(parser, *_):
        raise Reached(parser)

    def parser(name):
        path = BENCHMARKS / name
        if name not in known and "parse_args()" not in path.read_text():
            known[name] = None
        if name not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(argparse.ArgumentParser, "parse_args", reach)
                patch.setattr(sys, "argv", [str(path)])
                patch.syspath_prepend(BENCHMARKS)
                with pytest.raises(Reached) as reached:
                    runpy.run_path(str(path), run_name="__main__")
            known[name] = reached.value.parser
        return known[name]

    return parser


def options_of(name, parser_of):
    """Return the options of a script in `tests/benchmarks`."""
    parser = parser_of(name)
    return set(parser._option_string_actions if parser else re.findall(r'"(--[a-z-]+)"', script(name).read_text()))


def script(name):
    path = BENCHMARKS / name
    assert path.exists(), f"{name}: not in tests/benchmarks"
    return path


def must_run(words, parser_of):
    """Fail unless a command is one that its program takes."""
    program, *given = words
    if program == "metaleak":
        must_be_a_command(given)
    elif program in ("python", "pytest"):
        given = given[2:] if given[:2] == ["-m", "pytest"] else given
        named = [word for word in given if word.partition("/")[0] in TOP]
        assert named, "names no file"
        assert all((ROOT / word).exists() for word in named), named
        if named[0].startswith("tests/benchmarks/"):
            must_take(Path(named[0]).name, given[given.index(named[0]) + 1 :], parser_of)
    elif program.endswith(".py"):
        must_take(program, given, parser_of)
    elif program == "make":
        assert set(given) <= TARGETS, given
    elif program == "flwr":
        assert given[0] == "run"
        assert (ROOT / given[1] / "pyproject.toml").exists()
    else:
        assert program in OTHERS, f"{program}: nothing here knows what it takes"


def must_take(name, given, parser_of):
    """Fail unless a script of `tests/benchmarks` takes these arguments."""
    script(name)
    parser = parser_of(name)
    if parser is None or not given:
        assert {word for word in given if word.startswith("--")} <= options_of(name, parser_of), name
        return
    try:
        argparse.ArgumentParser.parse_args(parser, given)
    except SystemExit as leaving:
        if leaving.code:
            pytest.fail(f"{name} does not take {given}")


def must_be_a_command(given):
    """Fail unless the command line takes these words, and the files and attacks that are named take the changes."""
    command = get_command(app)
    while isinstance(command, click.Group):
        assert given, "names no command"
        if given[0].startswith("--"):
            assert given[0] in {"--help", "--version", "--debug"}, given[0]
            return
        assert given[0] in command.commands, given[0]
        command, given = command.commands[given[0]], given[1:]
    if not given:
        return
    asked = command.make_context(command.name, list(given)).params
    changes = tuple(asked.get("changes") or ())
    file = Path(asked.get("file") or "")
    if command.name == "attack" and asked["name"].islower():
        attack_from(asked["name"], [one for one in changes if not one.startswith(("targets.", "engine."))])
    elif command.name in ("simulate", "benchmark", "pretraining") and file.parts[:1] and file.parts[0] in TOP:
        must_be_read(ROOT / file, changes)


def must_be_read(path, changes=()):
    """Fail unless a YAML file is an experiment, or what its keys say that it is."""
    keys = yaml.safe_load(path.read_text())
    if "base" in keys:
        suite = read_suite_file(path)
        assert studies_of(suite, changes) if suite.kind == "pretraining" else suite.experiments(changes)
    elif "pool" in keys:
        read_study(path, changes)
    elif "candidates" in keys:
        read_app(path)
    else:
        read_experiment(path, changes)


def test_every_block_says_its_language_and_one_that_is_tested_here():
    assert {block.language for block in BLOCKS} == {"python", "sh", "toml", "yaml"}


@of_language("sh")
def test_commands_are_those_that_there_are(block, parser_of):
    for words in commands(block.text):
        must_run(words, parser_of)


@every_page
def test_commands_in_the_text_are_those_that_there_are(page, parser_of):
    known = {"--help"}
    shown = words_in_text(page) + [" ".join(words) for block in blocks(page) for words in commands(block.text)
                                   if block.language == "sh"]  # fmt: skip
    for text in shown:
        for name in re.findall(r"\b(\w+\.py)\b", text):
            known |= options_of(name, parser_of) if (BENCHMARKS / name).exists() else set()
    for text in words_in_text(page):
        first = text.partition(" ")[0]
        bracketed = re.sub(r" \[([^\]]*)\]", r" \1", text)
        if first in ("metaleak", "python", "pytest", "make") and " " in text and "..." not in text:
            (words,) = commands(bracketed)
            must_run(words, parser_of)
        elif re.fullmatch(r"\w+\.py", first) and " " in text:
            (words,) = commands(text)
            must_run(words, parser_of)
        elif text.startswith("--"):
            found = set(re.findall(r"(?<=\s)--[a-z-]+", f" {text}"))
            assert found <= known | OPTIONS | FLOWERS, found - known - OPTIONS - FLOWERS


def options(command):
    """Return the options of a command and of all below it."""
    own = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    return own.union(*(options(one) for one in getattr(command, "commands", {}).values()))


OPTIONS = options(get_command(app))
# Options of Flower's own programs.
FLOWERS = {"--node-config", "--trusted-entities"}


@every_page
def test_files_keys_and_names_in_the_text_exist(page):
    built = {block.note.partition(": ")[2] for block in blocks(page)}
    for text in words_in_text(page):
        if re.fullmatch(r"[\w-]+(/[\w.-]*)+", text) and text.partition("/")[0] in TOP:
            assert (ROOT / text).exists(), text
        elif re.fullmatch(r"\w+\.py", text) and text not in built:
            assert list(ROOT.glob(f"*/{text}")) or script(text), text
        elif re.fullmatch(r"metaleak(\.\w+)+", text):
            assert named(text), text
        elif re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", text) and not (ROOT / text.replace(".", "/")).exists():
            must_be_a_key(text)


def named(dotted):
    """Return whether `metaleak.server.Record` is a module, a group of entry points, or a name in a module."""
    module, _, name = dotted.rpartition(".")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    try:
        return dotted in groups or hasattr(import_module(module), name) or bool(import_module(dotted))
    except ImportError:
        return False


def must_be_a_key(dotted):
    """Fail where the first part of `task.ways` is a part of an experiment, which then has no such key."""
    part, *rest = dotted.split(".")
    if rest[0] in {"key", "pem"}:
        return
    for model in (Experiment, Study):
        field = model.model_fields.get(part)
        inner = getattr(field.annotation, "model_fields", None) if field and field.annotation is not Plugin else None
        if inner is not None:
            assert rest[0] in inner, f"{dotted}: no such key"


@of_language("yaml")
def test_yaml_is_an_experiment_or_what_its_keys_say(block, tmp_path):
    if block.note.startswith("file: "):
        pytest.skip("is run with the package beside it, in tests/deploy/test_extending.py")
    file = tmp_path / "shown.yaml"
    file.write_text(block.text.replace("my_app:Net", "flower_apps.networks:MLP"))
    must_be_read(file)


@of_language("toml")
def test_toml_is_toml(block):
    assert tomllib.loads(block.text)


@of_language("python")
def test_python_is_python_and_imports_what_there_is(block):
    included = re.fullmatch(r'--8<-- "(examples/\w+\.py)"\n', block.text)
    text = (ROOT / included[1]).read_text() if included else block.text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module != "my_app":
            module = import_module(node.module)
            assert all(hasattr(module, one.name) for one in node.names), ast.unparse(node)


def block_with(text):
    (block,) = (one for one in BLOCKS if text in one.text and one.language == "python")
    return block.text


def test_the_python_of_a_run_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "simulate", local_simulate)
    exec(compile(block_with("run_experiment({"), "docs/running.md", "exec"), {})
    assert float(re.search(r"value=([\d.]+)", capsys.readouterr().out)[1]) > 0.9


def test_the_leaderboard_is_read_as_the_page_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/defenses").mkdir(parents=True)
    row = {**dict.fromkeys(COLUMNS, "x"), "status": "done"}
    rows = [{**row, "auc": 0.625}, {**row, "auc": 0.875}, {**row, "auc": 0.9375, "status": "failed"}]
    pd.DataFrame(rows).to_parquet("runs/defenses/leaderboard.parquet")
    exec(compile(block_with("leaderboard.parquet"), "docs/benchmark.md", "exec"), {})
    said = capsys.readouterr().out
    assert "0.875" in said
    assert "0.625" not in said
    assert "0.9375" not in said


@pytest.mark.parametrize(
    "command",
    [
        "init experiment.yaml",
        "audit model lenet --input 1x28x28",
        pytest.param("audit defense gaussian --set clip=1 --set epsilon=8 --rounds 2", marks=pytest.mark.slow),
    ],
)
def test_what_is_quick_is_run(command, tmp_path, monkeypatch, capsys):
    assert any(f"metaleak {command}" in " ".join(words) for one in BLOCKS if one.language == "sh"
               for words in commands(one.text))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(command.split())
    assert leaving.value.code == 0, capsys.readouterr().err
