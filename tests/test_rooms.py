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
    "server": ("metaleak.clients.models", "metaleak.clients.rules"),
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
    (tmp_path / "wrong.py").write_text("def f():\n    from metaleak.server.record import Record\n")
    assert list(imported(tmp_path / "wrong.py")) == ["metaleak.server.record"]


def test_nothing_on_disk_is_pickled_and_nothing_is_evaluated():
    forbidden = ("import pickle", "torch.load(", "torch.save(", "yaml.load(", " eval(", "allow_pickle=True")
    everything = [*(path for room in ROOMS for path in modules(room)), *(ROOT / "tests").rglob("*.py")]
    texts = {path: path.read_text() for path in everything if path != Path(__file__)}
    assert not [f"{path}: {word}" for path, text in texts.items() for word in forbidden if word in text]


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
