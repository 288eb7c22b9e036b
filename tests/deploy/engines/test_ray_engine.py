"""Trouble on Ray: a killed actor, a killed machine; the numbers do not notice."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from local_grid import local_simulate
from ray.cluster_utils import Cluster

from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.engines.ray_start import gpus_each
from metaleak.deploy.simulate.launch import simulate
from metaleak.server import Record

LEARNERS = 60
EXPERIMENT = {
    "data": {"name": "mnist-5k"},
    "partition": {"learners": LEARNERS},
    "rule": {"name": "maml", "inner_steps": 5},
    "server": {"rounds": 12},
    "evaluation": {"every": 6, "tasks": 10},
    "attacks": [],
}
PROC = Path("/proc")

pytestmark = pytest.mark.skipif(not PROC.exists(), reason="needs /proc to find the actors")


def experiment(**engine):
    # One by one, so that a round takes long enough to be hit.
    return experiment_from({**EXPERIMENT, "engine": {"chunk": 1, **engine}}, "test")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return local_simulate(experiment(), tmp_path_factory.mktemp("undisturbed") / "run")


def actors(title=b"ray::ClientAppActor", among=None):
    """Return the process ids of the actors of this test's own Ray, or of those `among` them with this title."""
    found = []
    for process in PROC.glob("[0-9]*") if among is None else [PROC / str(one) for one in among]:
        try:
            if (process / "cmdline").read_bytes().startswith(title):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def assert_same(run, other):
    assert (run.path / "parameters.safetensors").read_bytes() == (other.path / "parameters.safetensors").read_bytes()
    mine, theirs = Record(run.record), Record(other.record)
    assert mine.rounds == theirs.rounds
    for round in mine.rounds:
        (learners, gradients), (others, expected) = mine.received(round), theirs.received(round)
        assert learners == others == list(range(LEARNERS)), "every learner of every round, once"
        assert all(gradients[name].tobytes() == expected[name].tobytes() for name in expected)


class Disturbance:
    """Does something once, in the middle of a round: in a thread, some time after round `after` is done."""

    def __init__(self, after, act):
        self.after = after
        self.act = act
        self.result = None

    def __call__(self, done):
        if done.round == self.after:
            # All processes are looked through here, while the server waits: beside it that takes longer than a round.
            threading.Thread(target=self._work, args=[actors()]).start()

    def _work(self, known):
        deadline = time.monotonic() + 240
        while not (busy := actors(b"ray::ClientAppActor.run", known)) and time.monotonic() < deadline:
            time.sleep(0.001)
        self.result = self.act(busy)


def test_a_killed_actors_learners_are_computed_again_in_the_same_round(tmp_path, undisturbed):
    heard = []
    kill = Disturbance(2, lambda busy: os.kill(busy[0], signal.SIGKILL) or busy[0])

    def on_round(done):
        heard.append((done.round, done.missing))
        kill(done)

    run = simulate(experiment(actors=2), tmp_path / "run", on_round)
    assert kill.result is not None, "no actor was killed"
    assert heard == [(round, 0) for round in range(1, 13)]
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_a_cluster_of_two_machines_loses_one_in_a_round(tmp_path, undisturbed):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        kill = Disturbance(2, lambda _: cluster.remove_node(other, allow_graceful=False) or "killed")
        heard = []

        def on_round(done):
            heard.append((done.round, done.missing))
            kill(done)

        run = simulate(experiment(ray_address=cluster.address), tmp_path / "run", on_round)
        assert kill.result == "killed"
        assert heard == [(round, 0) for round in range(1, 13)]
        assert_same(run, undisturbed)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize(
    ("gpus", "actors", "device", "each"),
    [
        (0, 2, "auto", 0.0),
        (1, 4, "auto", 0.25),
        (1, 3, "cuda", 0.3333),
        (2, 3, "cuda", 0.5),
        (4, 2, "auto", 2.0),
        (8, 16, "cpu", 0.0),
    ],
)
def test_actors_share_the_gpus_by_fractions(monkeypatch, gpus, actors, device, each):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert gpus_each(EngineSettings(actors=actors, device=device), actors) == each
