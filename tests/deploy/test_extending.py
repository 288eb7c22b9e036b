"""The package of docs/extending.md: built from the page, installed, benchmarked."""

import json
import os
import subprocess
import sys

import pytest
from pages import noted


def run(*command, cwd, **environment):
    outcome = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The leaderboard of the page's suite, run by a process that knows the package by its entry points alone."""
    folder = tmp_path_factory.mktemp("extending")
    files = noted("docs/extending.md", "file")
    assert set(files) == {"my_metaleak.py", "pyproject.toml", "suite.yaml"}
    package = folder / "package"
    package.mkdir()
    for name, content in files.items():
        (package / name).write_text(content)
    install = "pip install --no-index --no-deps --no-build-isolation --disable-pip-version-check --quiet --target"
    run(sys.executable, "-m", *install.split(), str(folder / "site"), ".", cwd=package)
    (folder / "suite.yaml").write_text(files["suite.yaml"])
    command = "from metaleak.deploy.cli import main; main(['benchmark', 'suite.yaml', '--out', 'mine', '--json'])"
    said = json.loads(run(sys.executable, "-c", command, cwd=folder, PYTHONPATH=str(folder / "site")))
    assert (said["cells"], said["failed"]) == (12, 0)
    assert (folder / "mine" / "report.html").exists()
    return json.loads((folder / "mine" / "leaderboard.json").read_text())["rows"]


def test_both_are_in_the_leaderboard_under_their_names(rows):
    done = [row for row in rows if row["status"] == "done"]
    assert {(row["model"], row["attack"], row["asks"], row["knows"]) for row in done} == {
        ("mlp", "likeness", "query", "nothing"),
        ("mlp", "likeness", "support", "nothing"),
    }
    assert [json.loads(row["defenses"]) for row in done[::2]] == [
        [],
        [{"name": "thinned", "place": "shared", "part": 0.5}],
        [{"name": "thinned", "place": "shared", "part": 0.1}],
    ]


def test_the_defenses_strength_is_shown_as_its_scale(rows):
    done = [row for row in rows if row["status"] == "done" and row["asks"] == "query"]
    assert [(row["defense"], row["scale"]) for row in done] == [
        ("undefended", ""),
        ("shared thinned (part)", "0.5"),
        ("shared thinned (part)", "0.1"),
    ]


def test_the_attack_finds_members_and_the_defense_hides_some(rows):
    bare, half, most = (row["auc"] for row in rows if row["model"] == "mlp" and row["asks"] == "query")
    assert bare > 0.6
    assert most < bare, (bare, half, most)


def test_a_model_that_the_attack_does_not_fit_is_not_a_failure(rows):
    assert {row["status"] for row in rows if row["model"] == "lenet"} == {"not applicable"}
