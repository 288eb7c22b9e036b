"""Runs and suites of strangers: nothing of them is run, followed, waited for, or printed raw."""

import json
import os
import shutil
import sys

import pytest
import yaml
from local_grid import local_simulate

import metaleak.deploy.simulate.launch as launch
from metaleak.deploy.cli import main
from metaleak.deploy.config.experiment import MAX_ROUNDS
from metaleak.deploy.config.reading import MAX_FILE, experiment_from
from metaleak.deploy.errors import one_line
from metaleak.deploy.report.page import write_report
from metaleak.deploy.results.reading import read
from metaleak.deploy.results.schema import MAX_CELLS, Round
from metaleak.deploy.simulate.launch import resume, simulate_here
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.server.learning.checkpoint import read_checkpoint

SMALL = {
    "name": "small",
    "data": "digits",
    "task": {"ways": 3},
    "partition": {"learners": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"rounds": 2},
    "evaluation": {"tasks": 5, "queries": 3},
    "attacks": [{"name": "query", "iterations": 3, "fit": 0}],
    "targets": {"members": 6, "non_members": 6},
}

THEIRS = """
from pathlib import Path
Path("ran").touch()
from metaleak.clients.models import MLP
from metaleak.defenses import Noise
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "run"
    local_simulate(experiment_from(SMALL, "small"), path)
    with pytest.raises(SystemExit):
        main(["attack", str(path), "query"])
    return path


@pytest.fixture
def run(tmp_path, monkeypatch, original):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def complaint(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert leaving.value.code in (1, 2)
    assert (err.count("\n"), err.isprintable()) == (1, False), err
    assert err[:-1].isprintable()
    return err


def spoil(file, how, secret):
    file.unlink(missing_ok=True)
    if how == "link":
        file.symlink_to(secret)
    elif how == "device":
        file.symlink_to("/dev/zero")
    elif how == "pipe":
        os.mkfifo(file)
    else:
        with file.open("wb") as opened:
            opened.truncate(1 << 40)


READ_BY_REPORT = [
    "experiment.yaml",
    "run.json",
    "metrics.jsonl",
    "attacks/query/attack.json",
    "attacks/query/scores.parquet",
    "attacks/query/gallery.safetensors",
]


@pytest.mark.parametrize("how", ["link", "device", "pipe", "huge"])
@pytest.mark.parametrize("name", READ_BY_REPORT)
def test_a_report_reads_plain_files_of_limited_size_alone(run, tmp_path, capsys, name, how):
    (tmp_path / "secret").write_text("name: 'a secret'\n")
    spoil(run / name, how, tmp_path / "secret")
    complaint(capsys, "report", run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("how", ["link", "device", "pipe", "huge"])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("experiment.yaml", ("attack", "{run}", "query", "--as", "again")),
        ("experiment.yaml", ("simulate", "--resume", "{run}")),
        ("run.json", ("simulate", "--resume", "{run}")),
    ],
)
def test_so_do_attack_and_resume(run, tmp_path, capsys, name, command, how):
    shutil.copy(run / name, tmp_path / "secret")
    spoil(run / name, how, tmp_path / "secret")
    complaint(capsys, *(part.format(run=run) for part in command))


@pytest.mark.parametrize("command", [("report", "{run}"), ("attack", "{run}", "span")])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("#" * (MAX_FILE + 1), f"more than the {MAX_FILE} that are read"),
        ("a: [1", "experiment.yaml: is not YAML in line 1"),
        ("[1]", "must be a mapping of keys to values, got list"),
    ],
)
def test_every_command_reads_the_experiment_with_the_same_limit_and_words(run, capsys, command, content, said):
    (run / "experiment.yaml").write_text(content)
    assert said in complaint(capsys, *(part.format(run=run) for part in command))


@pytest.mark.parametrize("how", ["link", "device", "pipe"])
def test_so_is_a_checkpoint(run, tmp_path, how):
    shutil.copy(run / "checkpoint.safetensors", tmp_path / "secret")
    spoil(run / "checkpoint.safetensors", how, tmp_path / "secret")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: cannot be read"):
        read_checkpoint(run / "checkpoint.safetensors")


def test_folders_that_are_links_are_not_followed(run, tmp_path, capsys):
    (run / "attacks").rename(tmp_path / "elsewhere")
    (run / "attacks").symlink_to(tmp_path / "elsewhere")
    assert "attacks: a link" in complaint(capsys, "report", run)
    assert "attacks: a link" in complaint(capsys, "attack", run, "query", "--as", "again")
    assert not (tmp_path / "elsewhere" / "again").exists()


def test_neither_are_the_runs_of_a_suite(run, tmp_path, capsys):
    suite = tmp_path / "suite"
    (suite / "runs").mkdir(parents=True)
    (suite / "runs" / "one").symlink_to(run)
    (suite / "suite.json").write_text(json.dumps({"cells": [{"id": "1", "run": "runs/one", "attack": "query"}]}))
    assert "a link" in complaint(capsys, "report", suite)


def test_a_report_in_the_place_of_a_link_replaces_the_link(run, tmp_path):
    (tmp_path / "victim").write_text("whole")
    (run / "report.html").symlink_to(tmp_path / "victim")
    write_report(run)
    assert (tmp_path / "victim").read_text() == "whole"
    assert not (run / "report.html").is_symlink()


@pytest.mark.parametrize("command", [("attack", "{run}", "query", "--as", "new"), ("simulate", "--resume", "{run}")])
def test_a_record_that_is_a_link_is_neither_read_nor_continued(run, tmp_path, capsys, command):
    shutil.move(run / "record", tmp_path / "precious")
    (run / "record").symlink_to(tmp_path / "precious")
    (run / "checkpoint.safetensors").unlink()
    said = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**said, "status": "interrupted"}))
    before = sorted((tmp_path / "precious").rglob("*"))
    assert "record: a link" in complaint(capsys, *(part.format(run=run) for part in command))
    assert sorted((tmp_path / "precious").rglob("*")) == before


def test_the_ray_cluster_that_a_run_names_is_joined_with_trust_alone(run, monkeypatch):
    plain = yaml.safe_load((run / "experiment.yaml").read_text())
    plain["engine"]["ray_address"] = "ray://elsewhere:10001"
    (run / "experiment.yaml").write_text(yaml.safe_dump(plain))
    said = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**said, "status": "interrupted"}))
    addresses = []
    monkeypatch.setattr(
        launch, "simulated_on_ray", lambda experiment, *rest, **more: addresses.append(experiment.engine.ray_address)
    )
    launch.resume(run)
    launch.resume(run, ["engine.ray_address=auto"])
    launch.resume(run, trust=True)
    assert addresses == [None, "auto", "ray://elsewhere:10001"]


def test_the_lock_and_the_metrics_are_not_written_through_a_link(run, tmp_path):
    (tmp_path / "victim").write_text("whole")
    for name, write in (
        (".held", lambda: RunDirectory(run).held().__enter__()),
        ("metrics.jsonl", lambda: RunDirectory(run).add_metrics(Round(round=9))),
    ):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / "victim")
        with pytest.raises(OSError, match="symbolic links"):
            write()
        assert (tmp_path / "victim").read_text() == "whole"


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "foreign_code.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "foreign_code"
    sys.modules.pop("foreign_code", None)


NAMING = {
    "data": {"data": "{module}:Data"},
    "model": {"model": {"name": "{module}:MLP", "hidden": [8]}},
    "rule": {"rule": "{module}:Rule"},
    "defenses.0": {"defenses": "{module}:Noise"},
    "attacks.0": {"attacks": [{"name": "subprocess:Popen", "args": ["touch", "ran"]}]},
}


@pytest.mark.parametrize("key", NAMING)
@pytest.mark.parametrize("command", ["attack", "resume", "report"])
def test_a_run_that_names_code_is_refused_before_any_is_imported(run, tmp_path, capsys, theirs, key, command):
    plain = yaml.safe_load((run / "experiment.yaml").read_text())
    named = yaml.safe_load(yaml.safe_dump(NAMING[key]).replace("{module}", theirs))
    (run / "experiment.yaml").write_text(yaml.safe_dump({**plain, **named}))
    if command == "report":
        write_report(run)
    else:
        arguments = ("simulate", "--resume", run) if command == "resume" else ("attack", run, "span")
        said = complaint(capsys, *arguments)
        assert f"{key}.name: " in said
        assert "--trust" in said
    assert not (tmp_path / "ran").exists()
    assert theirs not in sys.modules


def test_trust_lets_the_code_run(run, tmp_path, capsys, theirs):
    plain = yaml.safe_load((run / "experiment.yaml").read_text())
    plain["model"]["name"] = f"{theirs}:MLP"
    (run / "experiment.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(SystemExit) as leaving:
        main(["attack", str(run), "span", "--trust"])
    assert leaving.value.code == 0
    assert resume(run, trust=True).done
    assert (tmp_path / "ran").exists()
    assert RunDirectory.open(run).experiment(trust=True).model.name == f"{theirs}:MLP"


def test_an_attack_of_the_users_own_needs_no_trust(run):
    name = "metaleak.attacks.span.span_test:SpanTest"
    with pytest.raises(SystemExit) as leaving:
        main(["attack", str(run), name])
    assert leaving.value.code == 0


def test_a_suite_goes_on_with_runs_whose_code_it_names_itself(tmp_path, theirs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = experiment_from({**SMALL, "model": {"name": f"{theirs}:MLP", "hidden": [8]}}, "mine")
    assert simulate_here(mine, tmp_path / "mine").done
    assert simulate_here(mine, tmp_path / "mine").done
    monkeypatch.setattr(launch.Simulation, "serve", lambda *_: pytest.fail("was simulated"))
    with pytest.raises(ValueError, match="goes on as it began"):
        simulate_here(experiment_from(SMALL, "mine"), tmp_path / "mine")


def test_no_control_character_reaches_the_terminal(run, capsys):
    wild = "\x1b[31mred\x07\x9b"
    assert one_line(ValueError(f"{wild}: wrong")).isprintable()
    assert one_line(FileNotFoundError(2, "No such file", wild)).isprintable()
    described = json.loads((run / "attacks/query/attack.json").read_text())
    described["attack"][wild] = wild
    (run / "attacks/query/attack.json").write_text(json.dumps(described))
    (run / "attacks/query").rename(run / f"attacks/{wild}")
    with pytest.raises(SystemExit):
        main(["attack", str(run), "span"])
    assert wild not in (shown := capsys.readouterr().out)
    assert "\x1b[31m" not in shown
    (run / "experiment.yaml").write_text(json.dumps({wild: 1}))
    complaint(capsys, "report", run)


def test_more_rounds_and_cells_than_are_read_are_refused(run, tmp_path):
    (run / "metrics.jsonl").write_text('{"round":1}\n' * (MAX_ROUNDS + 1))
    with pytest.raises(ValueError, match=f"{MAX_ROUNDS + 1} lines, more than the {MAX_ROUNDS}"):
        read(run)
    cell = {"id": "1", "run": "runs/x", "attack": "query", "status": "waiting"}
    (tmp_path / "suite.json").write_text(json.dumps({"cells": [cell] * (MAX_CELLS + 1)}))
    with pytest.raises(ValueError, match=f"cells: .* {MAX_CELLS} items"):
        read(tmp_path)
