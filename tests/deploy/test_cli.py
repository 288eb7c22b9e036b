"""The command line as a person meets it."""

import errno
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
import yaml
from local_grid import local_simulate

import metaleak.deploy.commands as commands
from metaleak.clients.rules import MAML
from metaleak.deploy.cli import main
from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.engines.ray_start import start_ray
from metaleak.deploy.errors import Interrupted, WrongUsage
from metaleak.deploy.simulate.trial import try_out
from metaleak.server import Record, RecordWriter

SMALL = {
    "name": "small",
    "data": {"name": "digits"},
    "task": {"ways": 3},
    "partition": {"learners": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"rounds": 2},
    "evaluation": {"tasks": 5, "queries": 3},
    "attacks": [{"name": "query", "iterations": 3, "fit": 0}],
    "targets": {"members": 6, "non_members": 6},
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "simulate", local_simulate)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    local_simulate(experiment_from(SMALL, "small"), path)
    return path


def call(capsys, *arguments):
    """Return the exit code, what was printed and what was complained."""
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


@pytest.mark.parametrize("command", ["init", "simulate", "attack", "benchmark", "report", "audit model"])
def test_every_command_has_help_with_an_example(capsys, command):
    code, out, _ = call(capsys, *command.split(), "--help")
    assert code == 0
    assert f"Example: metaleak {command}" in " ".join(out.split())


def test_it_says_its_version(capsys):
    assert call(capsys, "--version") == (0, f"metaleak {version('metaleak')}\n", "")


def test_help_shows_where_a_run_lies_and_all_attacks(capsys):
    assert "runs/<name>" in call(capsys, "simulate", "--help")[1]
    said = call(capsys, "attack", "--help")[1]
    assert all(point.name in said for point in entry_points(group="metaleak.attacks"))


def test_one_round_is_one_round(capsys):
    open("small.yaml", "w").write(yaml.safe_dump(SMALL))  # noqa: SIM115
    assert ": 1 round in " in call(capsys, "simulate", "small.yaml", "--set", "rounds=1")[1]


def test_a_large_record_is_spoken_of_before_it_is_written(capsys):
    open("large.yaml", "w").write(yaml.safe_dump({**SMALL, "model": {"name": "mlp", "hidden": [60_000]}}))  # noqa: SIM115
    code, _, err = call(capsys, "simulate", "large.yaml", "--set", "rounds=1", "--set", "record.rounds=1")
    # 64 x 60 000 weights, 60 000 biases, 3 x 60 000 + 3 of the head; sent once and sent back six times.
    # On a slow machine lines of progress follow.
    assert (code, "the record will take about 114 MB of the " in err.partition("\n")[0]) == (0, True)


def test_more_actors_than_cores_can_use_are_refused():
    with pytest.raises(WrongUsage, match=r"engine\.actors: 4096 on .* at most"):
        start_ray(EngineSettings(actors=4096))


@pytest.mark.parametrize(
    "wrong",
    [
        ("fly",),
        ("simulate",),
        ("simulate", "x.yaml", "--sett", "a=1"),
        ("simulate", "x.yaml", "--resume", "runs/x"),
        ("simulate", "--resume", "runs/x", "--out", "runs/y"),
        ("attack", "x"),
    ],
)
def test_wrong_usage_exits_with_2(capsys, wrong):
    assert call(capsys, *wrong)[0] == 2


def test_init_simulate_attack_report(capsys):
    assert call(capsys, "init")[0] == 0
    assert yaml.safe_load(open("experiment.yaml"))["server"]["rounds"] == 30  # noqa: SIM115
    open("small.yaml", "w").write(yaml.safe_dump(SMALL))  # noqa: SIM115
    code, out, _ = call(capsys, "simulate", "small.yaml", "--set", "rounds=3")
    assert (code, "runs/small: 3 rounds" in out) == (0, True)
    code, out, _ = call(capsys, "attack", "runs/small", "query")
    assert (code, "query: AUC 0." in out or "query: AUC 1." in out) == (0, True)
    assert "outside_prior" in out
    code, out, _ = call(capsys, "report", "runs/small")
    assert (code, os.path.exists("runs/small/report.html")) == (0, True)


def test_json_is_for_machines(capsys, run):
    code, out, _ = call(capsys, "attack", run, "query", "--as", "for-machines", "--json")
    found = json.loads(out)
    assert (code, found["evaluation"]["members"], 0 <= found["evaluation"]["auc"]["value"] <= 1) == (0, 6, True)


def test_changes_reach_the_attack_and_the_targets(capsys, run):
    changes = ("--set", "iterations=2", "--set", "targets.members=4", "--set", "targets.round=last")
    assert call(capsys, "attack", run, "query", "--as", "changed", *changes)[0] == 0
    written = json.loads((run / "attacks" / "changed" / "attack.json").read_text())
    assert (written["attack"]["iterations"], written["evaluation"]["members"], written["round"]) == (2, 4, 2)


def one_line(text):
    assert text.startswith("metaleak: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("simulate", "{small}", "--set", "data.name=mnist", "--data-dir", "{empty}"), "MNIST"),
        (("simulate", "{small}", "--set", "partition.learners=100000"), "learners"),
        (("simulate", "{small}", "--out", "{run}"), "exists already"),
        (("simulate", "--resume", "{empty}"), "is not a run"),
        (("simulate", "--resume", "{run}", "--set", "rounds=9"), "goes on as it began"),
        (("attack", "{run}", "query", "--as", "../../out"), "cannot be called"),
        (("attack", "{empty}", "query"), "is not a run"),
        (("report", "{empty}"), "neither a run"),
        (("init", "{small}"), "exists already"),
    ],
)
def test_trouble_is_one_line_and_exit_code_1(capsys, tmp_path, run, arguments, said):
    assert_trouble(capsys, tmp_path, run, arguments, 1, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("simulate", "absent.yaml"), "absent.yaml: No such file"),
        (("simulate", "{small}", "--set", "rounds=0"), "server.rounds"),
        (("simulate", "{small}", "--set", "rounds"), "must be key=value"),
        (("simulate", "{small}", "--set", "model.name=nothing"), "model.name: unknown name 'nothing'"),
        (("simulate", "{small}", "--set", "faults.dropout=2"), "faults.dropout"),
        (("simulate", "{small}", "--set", "engine.learners_per_node=0"), "engine.learners_per_node"),
        (("attack", "{run}", "nothing"), "unknown name 'nothing'"),
        (("attack", "{run}", "query", "--set", "iterations=-1"), "iterations"),
        (
            ("attack", "{run}", "query", "--set", "targets.round=9"),
            "targets.round: must be one of the 2 recorded rounds",
        ),
        (("benchmark", "{small}"), "allowed are base, grid, kind, name"),
        (("benchmark", "absent.yaml"), "absent.yaml: No such file"),
    ],
)
def test_a_wrong_file_or_value_is_one_line_and_exit_code_2(capsys, tmp_path, run, arguments, said):
    assert_trouble(capsys, tmp_path, run, arguments, 2, said)


def assert_trouble(capsys, tmp_path, run, arguments, expected, said):
    small, empty = tmp_path / "small.yaml", tmp_path / "empty"
    small.write_text(yaml.safe_dump(SMALL))
    empty.mkdir()
    before = sorted(path for path in run.rglob("*"))
    code, _, err = call(capsys, *(part.format(small=small, empty=empty, run=run) for part in arguments))
    assert code == expected
    assert said in one_line(err)
    assert sorted(path for path in run.rglob("*")) == before, "nothing that was written is touched"


def test_a_damaged_record_is_named_and_debug_shows_the_traceback(capsys, tmp_path):
    path = tmp_path / "run"
    local_simulate(experiment_from(SMALL, "small"), path)
    part = sorted((path / "record" / "replies").iterdir())[0]
    part.write_bytes(part.read_bytes()[:100])
    code, _, err = call(capsys, "attack", path, "query")
    assert (code, part.name in one_line(err)) == (1, True)
    with pytest.raises(ValueError, match=part.name):
        main(["--debug", "attack", str(path), "query"])
    assert Record(path / "record").received(2)


def test_a_full_disk_is_one_line_and_keeps_what_was_written(capsys, tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**SMALL, "server": {"rounds": 5}}))
    whole = RecordWriter.reply

    def until_full(self, round, *rest, **named):
        if round > 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        return whole(self, round, *rest, **named)

    monkeypatch.setattr(RecordWriter, "reply", until_full)
    code, _, err = call(capsys, "simulate", "small.yaml", "--out", "run")
    assert (code, "No space left on device" in one_line(err)) == (1, True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert Record(tmp_path / "run" / "record").rounds == [1, 2]


def test_a_start_that_does_not_fit_the_model_is_named(capsys, tmp_path, run):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    start = f"start_from={run / 'parameters.safetensors'}"
    code, _, err = call(capsys, "simulate", "small.yaml", "--set", start, "--set", "model.hidden=[9]")
    assert (code, "parameters.safetensors: holds" in one_line(err)) == (1, True)
    assert call(capsys, "simulate", "small.yaml", "--set", start)[0] == 0


def test_the_module_of_a_user_is_found_beside_him(tmp_path, capsys):
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\ndef net() -> nn.Module:\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**SMALL, "model": {"name": "my_net:net"}}))
    assert call(capsys, "simulate", "mine.yaml")[0] == 0


def test_ctrl_c_during_an_attack_is_one_line_and_exit_code_130(capsys, monkeypatch, run):
    monkeypatch.setattr(commands, "assess", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, err = call(capsys, "attack", run, "query", "--as", "stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, one_line(err)) == (130, "metaleak: interrupted\n")
    assert not (run / "attacks" / "stopped").exists()


def test_an_interruption_in_the_middle_of_a_model_is_no_fault_of_the_model(monkeypatch):
    def interrupted(*arguments):
        raise Interrupted("interrupted")

    monkeypatch.setattr(MAML, "meta_gradient", interrupted)
    with pytest.raises(Interrupted, match=r"^interrupted$"):
        try_out(experiment_from(SMALL, "small").federation())


def test_the_installed_command_runs(tmp_path):
    outcome = subprocess.run(
        [sys.executable, "-c", "from metaleak.deploy.cli import main; main(['init', 'a.yaml'])"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "wrote a.yaml" in outcome.stdout


@pytest.mark.parametrize("command", ["simulate", "attack", "benchmark", "report"])
def test_sigterm_ends_a_command_with_one_line_also_where_ctrl_c_is_ignored(capsys, monkeypatch, command):
    done = []

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        done.append("went on")

    monkeypatch.setattr(commands, f"{command}_command", interrupted)
    at_sigint, at_sigterm = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        code, out, err = call(capsys, command, "some", *(["query"] if command == "attack" else []))
        assert (code, out, err, done) == (130, "", "metaleak: interrupted\n", [])
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == at_sigterm
    finally:
        signal.signal(signal.SIGINT, at_sigint)
