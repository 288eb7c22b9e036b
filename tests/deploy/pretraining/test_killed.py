"""A study that is killed, started again: what was made stays as it is."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

STUDY = {
    "pool": {"data": "mnist-5k", "classes": [0, 1, 2], "examples": 400},
    "downstream": {"data": "mnist-5k", "classes": [5, 6, 7], "examples": 400},
    "model": {"name": "mlp", "hidden": [16]},
    "pretraining": {"epochs": 20, "batch": 20},
    "models": 8,
    "points": 200,
    "attacks": ["metaleak.attacks.pretraining.gaussian_ratio:GaussianRatio"],
    "engine": {"device": "cpu", "actors": 2},
}
COMMAND = "from metaleak.deploy.cli import main; main()"


def files(out):
    """Return every model's file that is whole, with the time when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "models").glob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("where", [(), ("--here",)], ids=["on Ray", "here"])
def test_killed_at_a_random_moment_and_started_again_nothing_is_trained_twice(tmp_path, where):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    out = tmp_path / "out"
    command = [sys.executable, "-c", COMMAND, "pretraining", "study.yaml", "--out", "out", *where]
    began = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    wanted = random.randint(2, 9)
    while began.poll() is None and len(files(out)) < wanted:
        time.sleep(0.02)
    os.killpg(began.pid, signal.SIGKILL)
    began.wait()
    before = files(out)
    assert wanted <= len(before)
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    after = files(out)
    assert len(after) == 2 * STUDY["models"]
    assert {name: after[name] for name in before} == before
