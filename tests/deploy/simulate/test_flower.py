"""The app for `flwr run`.

Its nodes have a secret of their own on the deployment engine and are repeatable in a simulation; its server writes
every run into a place of its own.
"""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from local_grid import LocalGrid

from metaleak.clients import client_app
from metaleak.deploy.config.reading import experiment_from, read_experiment
from metaleak.deploy.simulate.flower import flower_client, flower_server
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.server import Record

GAUSSIAN = {"name": "gaussian", "clip": 1.0, "epsilon": 8}
PLAIN = {
    "data": {"name": "digits"},
    "task": {"ways": 3},
    "partition": {"learners": 4},
    "model": {"name": "mlp", "hidden": [8]},
    "defenses": [GAUSSIAN],
    "engine": {"learners_per_node": 4, "chunk": 2},
    "attacks": [],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(PLAIN))
    return tmp_path


def sent(
    folder: Path, run: int = 1, changes: str = "", scale: float = 1.0, node_config: dict[str, str] | None = None
) -> torch.Tensor:
    """What the learners of a node send in round 1 of a run, one entry of their gradients."""
    LocalGrid(flower_client(folder), nodes=1)  # sets up Flower's identity of this process
    parameters = experiment_from(PLAIN, "here").federation().initial_parameters()
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array((scale * value).numpy()) for name, value in parameters.items()}),
            "config": ConfigRecord({"learner-ids": [0, 1, 2, 3], "server-round": 1, "chunk": 2}),
        }
    )
    message = Message(content, dst_node_id=1, message_type="train")
    context = Context(run, 1, node_config or {}, RecordDict(), {"set": changes})
    reply = flower_client(folder)(message, context)
    return torch.from_numpy(reply.content["arrays"]["head.bias"].numpy().copy())


def test_on_the_deployment_engine_the_noise_is_keyed_by_the_nodes_own_secret(folder):
    first = sent(folder)
    assert (folder / "home" / "metaleak-noise-key").stat().st_size == 32
    assert torch.equal(first, sent(folder)), "asked again, it draws the same noise again"
    assert not torch.equal(first, sent(folder, run=2)), "another run has another noise"
    shutil.rmtree(folder / "home")
    assert not torch.equal(first, sent(folder)), "the seed that the server knows does not decide"


def test_the_secret_may_lie_elsewhere(folder):
    one = sent(folder, node_config={"noise-key": str(folder / "key")})
    assert (folder / "key").exists()
    assert not (folder / "home").exists()
    assert torch.equal(one, sent(folder, node_config={"noise-key": str(folder / "key")}))


def test_in_a_simulation_the_seed_decides(folder, monkeypatch):
    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            return True

    monkeypatch.setitem(__import__("sys").modules, "ray", Ray)
    simulated = {"partition-id": "0", "num-partitions": "1"}
    assert torch.equal(sent(folder, node_config=simulated), sent(folder, run=2, node_config=simulated))
    assert not (folder / "home").exists()
    sent(folder)
    assert (folder / "home").exists(), "Ray alone makes no simulation"


def test_a_guarantee_needs_learners_that_stay_on_their_node(folder):
    with pytest.raises(ValueError, match=r"^engine\.learners_per_node: must be a number on the deployment engine"):
        sent(folder, changes="engine.learners_per_node=auto")
    sent(folder, changes="engine.learners_per_node=auto; defenses=[]")


def test_other_parameters_in_the_same_round_get_other_noise(folder):
    """Or the difference of two answers would be free of noise."""
    clipped = changed_only = None
    for scale in (1.0, 0.5):
        answer = sent(folder, scale=scale)
        changed_only = None if clipped is None else answer - clipped
        clipped = answer
    clip = experiment_from(PLAIN, "here").federation().defenses[0].clip
    assert changed_only.norm() > 2 * clip, "the noise of two answers, where one noise would leave 2 clip at most"


def test_nothing_that_the_server_writes_or_receives_holds_the_secret(folder):
    grid = LocalGrid(flower_client(folder))
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"out": str(folder / "out")}
    )
    flower_server(folder)(grid, context)
    key = (folder / "home" / "metaleak-noise-key").read_bytes()
    written = [file.read_bytes() for file in (folder / "out").rglob("*") if file.is_file()]
    passed = [str(message.content).encode() for message in grid.seen if message.has_content()]
    passed += [
        bytes(array.data)
        for message in grid.seen
        if message.has_content()
        for record in message.content.array_records.values()
        for array in record.values()
    ]
    assert RunDirectory.open(folder / "out").done
    assert len(passed) > 4
    for content in (*written, *passed):
        assert key not in content
        assert key.hex().encode() not in content


SMALL = {
    **PLAIN,
    "defenses": [],
    "server": {"rounds": 2},
    "evaluation": {"every": 2, "tasks": 5, "queries": 2},
}


def run_app(folder: Path, out: str) -> None:
    """Start the app's server as `flwr run` does."""
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"out": out})
    federation = read_experiment(folder / "experiment.yaml").federation()
    flower_server(folder)(LocalGrid(client_app(federation)), context)


def test_it_runs_twice_into_places_of_its_own_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.chdir(tmp_path)
    for name in ("flower", "flower-2"):
        caplog.clear()
        with caplog.at_level("INFO", logger="flwr"):
            run_app(tmp_path, "runs/flower")
        run = RunDirectory.open(tmp_path / "runs" / name)
        assert run.done
        assert Record(run.record).rounds == [1, 2]
        assert f"writes the run to {run.path}" in caplog.text
        assert "round 1 of 2\n" in caplog.text
        assert "round 2 of 2, adapted accuracy 0." in caplog.text
