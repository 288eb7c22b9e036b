"""Simulations on Flower and Ray as they really run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from local_grid import local_simulate

from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate.launch import simulate
from metaleak.server import Record

ROOT = Path(__file__).parents[3]
SMALL = {
    "data": {"name": "digits"},
    "task": {"ways": 3},
    "partition": {"learners": 40},
    "model": {"name": "mlp", "hidden": [16]},
    "defenses": [{"name": "noise", "place": "shared", "scale": 0.1}],
    "server": {"rounds": 3, "fraction": 0.9},
    "evaluation": {"every": 2, "tasks": 10, "queries": 3},
    "attacks": [],
}


@pytest.fixture(scope="module")
def two_actors(tmp_path_factory):
    heard = []
    experiment = experiment_from({**SMALL, "engine": {"actors": 2}}, "small")
    return simulate(experiment, tmp_path_factory.mktemp("launch") / "two", heard.append), heard


def test_a_run_directory_says_what_happened(two_actors):
    run, heard = two_actors
    state = run.state()
    assert (state.status, state.error, state.seed) == ("done", None, 0)
    assert set(state.versions) >= {"python", "torch", "flwr", "ray", "metaleak"}
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3] == [done.round for done in heard]
    assert [line["learners"] for line in lines] == [36] * 3
    assert [line["accuracy"] is not None for line in lines] == [False, True, True]
    assert run.experiment().resolved() == yaml.safe_load((run.path / "experiment.yaml").read_text())


def test_the_number_of_actors_changes_no_bit(two_actors, tmp_path):
    """Two actors do what the engine of this process does; another test holds one actor to the same."""
    one = local_simulate(experiment_from({**SMALL, "engine": {"actors": 1}}, "small"), tmp_path / "one")
    other = two_actors[0]
    for round in (1, 2, 3):
        (learners, mine), (others, theirs) = (Record(run.record).received(round) for run in (one, other))
        assert learners == others
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
    parameters = [(run.path / "parameters.safetensors").read_bytes() for run in (one, other)]
    assert parameters[0] == parameters[1]


def alive(marker):
    """Return the processes of this test, found by an environment variable that Ray's children inherit."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes())
        except OSError:
            continue
    return found


PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the processes")


@contextmanager
def simulating(folder, before=None):
    """Simulate without end in a process of its own; inside the block five rounds are done."""
    (folder / "long.yaml").write_text(
        yaml.safe_dump({**SMALL, "server": {"rounds": 100_000}, "record": {"rounds": 20}})
    )
    command = "from metaleak.deploy.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "simulate", "long.yaml", "--out", "run"],
        cwd=folder,
        env={**os.environ, "METALEAK_TEST_MARKER": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    try:
        metrics = folder / "run" / "metrics.jsonl"
        wait(lambda: process.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") >= 5))
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()


def wait(event):
    """Wait until `event()` is true; fail when it is not in all the time that a busy machine may need."""
    deadline = time.monotonic() + 240
    while not event():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@PROC
@pytest.mark.parametrize(
    ("number", "ctrl_c"),
    [
        pytest.param(signal.SIGINT, signal.SIG_DFL, id="ctrl-c"),
        pytest.param(signal.SIGTERM, signal.SIG_IGN, id="sigterm", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_actors_and_leaves_a_readable_record(tmp_path, number, ctrl_c):
    # A shell's background job ignores Ctrl-C, and so do its children.
    with simulating(tmp_path, lambda: signal.signal(signal.SIGINT, ctrl_c)) as process:
        marker = f"METALEAK_TEST_MARKER={tmp_path}"
        # An actor's title changes with what it does, and cannot be read in the meantime.
        wait(lambda: any(b"ray::" in line for line in alive(marker)))
        process.send_signal(number)
        _, err = process.communicate(timeout=240)
        wait(lambda: not any(b"ray::" in line for line in alive(marker)))
    assert process.returncode == 130
    # Behind the progress, which is told in lines where there is no terminal, from ten seconds on.
    *progress, last = err.splitlines()
    assert last == "metaleak: run: interrupted; `metaleak simulate --resume run` goes on from here"
    assert not any("Traceback" in line for line in progress), err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    record = Record(tmp_path / "run" / "record")
    assert len(record.rounds) >= 5
    for round in record.rounds[:-1]:
        assert len(record.received(round)[0]) == 40


@PROC
@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_dead_ray_ends_the_run_with_one_line(tmp_path, name):
    with simulating(tmp_path) as process:
        for found in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"METALEAK_TEST_MARKER={tmp_path}".encode() in (found / "environ").read_bytes()
                if ours and (found / "cmdline").read_bytes().split(b"\0")[0].endswith(f"/{name}".encode()):
                    os.kill(int(found.name), signal.SIGKILL)
            except OSError:
                continue
        _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("metaleak: ")] == [
        f"metaleak: Ray's process {name} has died; --resume goes on from the last round"
    ]
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (said["status"], name in said["error"]) == ("failed", True)
    Record(tmp_path / "run" / "record").received(1)


@pytest.mark.slow
def test_a_killed_simulation_goes_on_from_the_command_line_and_ends_with_the_same_bits(tmp_path):
    settings = {**SMALL, "server": {"rounds": 25, "fraction": 0.9}, "engine": {"actors": 1, "chunk": 4}}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-c", "from metaleak.deploy.cli import main; main()", "simulate"]
    killed = subprocess.Popen(
        [*command, "some.yaml", "--out", "run"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        wait(lambda: killed.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") >= 5))
        assert killed.poll() is None
    finally:
        killed.kill()
    killed.wait()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    resumed = subprocess.run(
        [*command, "--resume", "run", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["final"]["round"] == 25
    other = local_simulate(experiment_from(settings, "undisturbed"), tmp_path / "undisturbed")
    mine, theirs = Record(tmp_path / "run" / "record"), Record(other.record)
    assert mine.rounds == theirs.rounds == list(range(1, 26))
    for round in mine.rounds:
        (learners, gradients), (others, expected) = mine.received(round), theirs.received(round)
        assert learners == others
        assert all(gradients[name].tobytes() == expected[name].tobytes() for name in expected)
    final = [path / "parameters.safetensors" for path in (tmp_path / "run", other.path)]
    assert final[0].read_bytes() == final[1].read_bytes()


@pytest.mark.slow
def test_flwr_run_starts_the_app_without_a_network(tmp_path):
    flwr = Path(sys.executable).with_name("flwr")
    app = tmp_path / "app"
    shutil.copytree(ROOT / "deploy" / "flower_app", app)
    quiet = {
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "METALEAK_TEST_MARKER": str(tmp_path),
        # Flower finds its own programs by name, as in an activated environment.
        "PATH": f"{flwr.parent}{os.pathsep}{os.environ['PATH']}",
    }
    out = tmp_path / "out"
    changes = f'set="rounds=2; partition.learners=6; evaluation.tasks=10" out="{out}"'
    try:
        outcome = subprocess.run(
            [flwr, "run", str(app), "-c", changes, "--stream"],
            env={**os.environ, **quiet},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        said = out / "run.json"
        assert said.exists(), outcome.stdout[-3000:] + outcome.stderr[-3000:]
        assert json.loads(said.read_text())["status"] == "done", outcome.stdout[-3000:]
        assert Record(out / "record").received(2)[0] == list(range(6))
    finally:
        # `flwr run` leaves its SuperLink behind.
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"METALEAK_TEST_MARKER={tmp_path}".encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                continue
