"""Flower's undocumented modules are imported in one file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTED = (
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.server",
    "flwr.server.strategy",
    "flwr.simulation",
)
ONE_FILE = "clients/wire/flower_private.py"


def private(tree):
    """Every import of a module of Flower's, or of a name in one, that is not documented."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.partition(".")[0] == "flwr")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flwr":
            if node.module not in DOCUMENTED:
                yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names if one.name.startswith("_"))


def test_no_other_module_imports_what_flower_does_not_document():
    rooms = ("attacks", "clients", "defenses", "deploy", "server")
    found = {
        str(path.relative_to(ROOT)): names
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if (names := list(private(ast.parse(path.read_text()))))
    }
    assert list(found) == [ONE_FILE]


@pytest.mark.parametrize(
    "text",
    [
        "import flwr",
        "import flwr.supercore",
        "from flwr.common import log",
        "from flwr.server.superlink import state",
        "def f():\n    from flwr.app import _hidden",
    ],
)
def test_the_rule_would_see_a_private_import(text):
    assert list(private(ast.parse(text)))


def test_every_private_import_says_why_it_is_needed():
    lines = (ROOT / ONE_FILE).read_text().splitlines()
    imports = [
        number for number, line in enumerate(lines) if line.startswith("from flwr.") and "flwr.app" not in line
    ]
    assert len(imports) >= 5
    assert all(lines[number - 1].startswith("# ") for number in imports)
