"""The command where only the recorder is installed."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from metaleak.deploy.errors import NOT_IN_THE_RECORDER

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("missing", ["typer", "torch"])
def test_what_is_not_installed_is_named_in_one_line(tmp_path, missing):
    command = f"import sys; sys.modules[{missing!r}] = None; from metaleak.deploy.console import main; main()"
    # Given explicitly: readline may have set COLUMNS behind Python's back, and then lines are wrapped.
    done = subprocess.run(
        [sys.executable, "-c", command, "init"],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    install = "pip install 'metaleak[all]' brings all that a recorder does not need"
    assert done.stderr == f"metaleak: {missing} is not installed: {install}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_console_script_is_this_one():
    assert PROJECT["scripts"] == {"metaleak": "metaleak.deploy.console:main"}


def required(*requirements):
    """The distributions that requirements name, without versions and extras."""
    return {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in requirements}


def test_all_libraries_that_are_imported_are_required_and_known_to_the_command():
    imported = set()
    rooms = ("attacks", "clients", "defenses", "deploy", "server")
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "metaleak"}
    text = {"tokenizers", "transformers"}
    assert text <= imported
    # The latter brings the former.
    assert required(*PROJECT["optional-dependencies"]["text"]) == {"metaleak", "transformers"}
    imported -= text
    assert imported - {"flwr", "numpy", "pyarrow"} == NOT_IN_THE_RECORDER
    base, rest = required(*PROJECT["dependencies"]), required(*PROJECT["optional-dependencies"]["all"])
    assert base == {"flwr", "numpy", "pyarrow"}
    # Ray comes with Flower's extra, these two with pydantic and Jinja.
    brought = {"ray", "typing-extensions", "markupsafe"}
    distributions = packages_distributions()
    assert required(*(distributions[name][0] for name in imported)) == base | rest | brought
    assert "metaleak[all]" in PROJECT["optional-dependencies"]["dev"]
