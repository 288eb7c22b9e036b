"""The house's rules: which room may import which, and the form of the code."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("attacks", "clients", "defenses", "deploy", "server")
MAY_IMPORT = {
    "defenses": (),
    "clients": ("metaleak.defenses",),
    "server": ("metaleak.clients.models", "metaleak.clients.rules", "metaleak.clients.wire"),
    "attacks": (
        "metaleak.server",
        "metaleak.clients.models",
        "metaleak.clients.rules",
        "metaleak.clients.episode",
        "metaleak.defenses",
    ),
    "deploy": ("metaleak",),
}


def modules(room):
    return sorted(path for path in (ROOT / room).rglob("*.py") if "flower_app" not in path.parts)


def imported(path):
    """Every `metaleak...` name that the module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("metaleak"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if (node.module or "").startswith("metaleak"):
                yield node.module


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    allowed = (*MAY_IMPORT[room], f"metaleak.{room}")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(room)
        for name in imported(path)
        if not any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)
    ]
    assert not wrong


def test_the_rule_would_see_a_wrong_import(tmp_path):
    (tmp_path / "wrong.py").write_text("def f():\n    from metaleak.server.record.reader import Record\n")
    assert list(imported(tmp_path / "wrong.py")) == ["metaleak.server.record.reader"]


PICKLES = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
RUNS_CODE = ("torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
EVALUATES = ("eval", "exec")


def dangers(tree, evaluates):
    """Every import of a pickle, and every call that reads one from disk or (of `evaluates`) runs a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            yield from (name for name in named if name.partition(".")[0] in PICKLES)
            if isinstance(node, ast.ImportFrom):
                yield from (
                    f"{node.module}.{one.name}" for one in node.names if f"{node.module}.{one.name}" in RUNS_CODE
                )
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in (*RUNS_CODE, *evaluates) or called.removeprefix("builtins.") in evaluates:
                yield called
            yield from (
                "allow_pickle"
                for keyword in node.keywords
                if keyword.arg == "allow_pickle"
                and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
            )


def test_nothing_on_disk_is_pickled_and_nothing_is_evaluated():
    rooms = [(path, EVALUATES) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    # The tests run the code blocks of our own pages.
    own = [(path, ("eval",)) for path in (ROOT / "tests").rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}: {danger}"
        for path, evaluates in (*rooms, *own)
        for danger in dangers(ast.parse(path.read_text()), evaluates)
    ]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import os, cloudpickle",
        "from pickle import loads",
        "from torch import load",
        "x = [eval(text)]",
        "builtins.exec(text)",
        "torch.load(path, weights_only=True)",
        "yaml.load(text, Loader)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
    ],
)
def test_the_rule_would_see_a_pickle_and_an_evaluation(text):
    assert list(dangers(ast.parse(text), EVALUATES))


@pytest.mark.parametrize("text", ["np.load(path, allow_pickle=False)", "model.eval()", "yaml.safe_load(text)"])
def test_the_rule_lets_harmless_calls_pass(text):
    assert not list(dangers(ast.parse(text), EVALUATES))


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")])
def test_ruff_is_content(arguments):
    outcome = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout


def test_types_hold_everywhere(tmp_path):
    """mypy reads the sources through a tree of links, laid out as the installed package is."""
    tree = tmp_path / "metaleak"
    tree.mkdir()
    for room in ROOMS:
        (tree / room).symlink_to(ROOT / room)
    packages = [argument for room in ROOMS for argument in ("-p", f"metaleak.{room}")]
    outcome = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *packages],
        cwd=ROOT,
        env={"MYPYPATH": str(tmp_path), "PATH": str(Path(shutil.which("true") or "/bin/true").parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout
