"""A wheel and a source distribution, as an index would have them: built, installed elsewhere, and used."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from pages import ROOT, noted

NEEDED = ("deploy/report/templates/report.html.j2", "deploy/report/templates/report.js", "deploy/py.typed")


def run(*command, cwd, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    outcome = subprocess.run(
        command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the folder with a wheel and a source distribution, made from the files that git knows."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    for kind in ("build_wheel", "build_sdist"):
        run(sys.executable, "-W", "ignore", "-c", build, kind, str(folder / "dist"), cwd=source)
    return folder / "dist"


@pytest.mark.slow
def test_both_hold_all_that_is_needed(built):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {f"metaleak/{name}" for name in NEEDED} <= set(inside)
    assert not [name for name in inside if "tests/" in name or name.endswith(".ipynb")]
    with tarfile.open(source) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {*NEEDED, "LICENSE", "README.md"} <= set(names)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_is_installed_in_an_environment_of_its_own_and_the_tutorial_runs(built, tmp_path, kind):
    (archive,) = built.glob(kind)
    run(sys.executable, "-m", "venv", "--without-pip", "here", cwd=tmp_path)
    python = tmp_path / "here/bin/python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    install = "pip install --no-index --no-deps --no-build-isolation --disable-pip-version-check --quiet --target"
    run(sys.executable, "-W", "ignore", "-m", *install.split(), site, str(archive), cwd=tmp_path)
    # The libraries are those of the tests: there may be no network.
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    Path(site, "libraries.pth").write_text("\n".join(libraries) + "\n")
    where = run(python, "-c", "import metaleak.deploy as d; print(d.__file__)", cwd=tmp_path)
    assert where.startswith(site)
    command = [python, "-c", "from metaleak.deploy.console import main; main()"]
    assert re.fullmatch(r"metaleak \d+\.\d+\.\d+\n", run(*command, "--version", cwd=tmp_path))
    blocks = noted("docs/tutorial.md", "tutorial")
    (tmp_path / "experiment.yaml").write_text(blocks["experiment.yaml"])
    for line in blocks["commands"].splitlines():
        run(*command, *line.split()[1:], cwd=tmp_path, OMP_NUM_THREADS="1")
    assert (tmp_path / "runs/first/report.html").exists()
