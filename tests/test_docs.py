"""The documentation site: its pages are of this code, lead somewhere, and the tutorial runs as it stands."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import reference_pages
import yaml
from local_grid import local_simulate
from pages import ROOT, noted

import metaleak.deploy.commands as commands
import metaleak.deploy.simulate.launch as launch
from metaleak.deploy.cli import main

PAGES = sorted((ROOT / "docs").glob("*.md"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def files_of(nav):
    """Return the pages that a part of the navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [file for one in (nav.values() if isinstance(nav, dict) else nav) for file in files_of(one)]


def test_the_reference_is_that_of_the_code():
    again = "python docs/reference_pages.py"
    assert (ROOT / "docs/commands.md").read_text() == reference_pages.commands(), again
    assert (ROOT / "docs/settings.md").read_text() == reference_pages.settings(), again
    assert (ROOT / "docs/plugins.md").read_text() == reference_pages.plugins(), again


def test_the_catalog_names_every_plug_in():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    words = set(re.findall(r"`([a-z0-9-]+)`", (ROOT / "docs/catalog.md").read_text()))
    names = {name for group, named in groups.items() if group != "metaleak.pretraining_attacks" for name in named}
    assert names <= words, names - words


def test_every_page_is_in_the_navigation_once():
    assert sorted(files_of(SITE["nav"])) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_included_files_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for included in re.findall(r'--8<-- "([^"]+)"', text):
        assert (ROOT / included).exists(), included


def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    blocks = noted("docs/tutorial.md", "tutorial")
    assert set(blocks) == {"experiment.yaml", "commands", "defense"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "simulate", local_simulate)
    monkeypatch.setattr(launch, "simulate", local_simulate)
    monkeypatch.syspath_prepend(ROOT / "examples")
    Path("experiment.yaml").write_text(blocks["experiment.yaml"])
    for line in blocks["commands"].splitlines():
        with pytest.raises(SystemExit) as leaving:
            main(line.removeprefix("metaleak ").split())
        assert leaving.value.code == 0, capsys.readouterr().err
    assert Path("runs/first/report.html").exists()
    assert "span: AUC" in capsys.readouterr().out
    (script,) = re.findall(r"python (\S+)", blocks["defense"])
    sys.modules.pop("own_defense", None)
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert capsys.readouterr().out.count("AUC") == 2


def test_the_site_is_built_without_a_warning(tmp_path):
    mkdocs = shutil.which("mkdocs", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mkdocs is None:
        pytest.skip("the extra metaleak[docs] is not installed")
    command = [mkdocs, "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    outcome = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
