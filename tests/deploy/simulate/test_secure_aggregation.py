"""Secure aggregation from the experiment file to the record, and over an interruption."""

import pytest
from local_grid import LocalGrid, local_simulate

from metaleak.clients import client_app
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.errors import Interrupted
from metaleak.deploy.simulate import launch
from metaleak.deploy.simulate.launch import resume
from metaleak.deploy.simulate.simulation import Simulation
from metaleak.server import AGGREGATE, Record

EXPERIMENT = {
    "data": {"name": "digits"},
    "task": {"ways": 3},
    "partition": {"learners": 12, "examples_per_class": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "defenses": [{"name": "pruning", "keep": 0.5}, {"name": "secure-aggregation"}],
    "faults": {"dropout": 0.2},
    "server": {"rounds": 5, "fraction": 0.8},
    "evaluation": {"every": 5, "tasks": 4, "queries": 2},
    "engine": {"chunk": 3},
    "attacks": [],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return local_simulate(experiment_from(EXPERIMENT, "test"), tmp_path_factory.mktemp("whole") / "run")


def test_the_server_learns_as_before_and_records_means_alone(tmp_path, whole):
    plain = {**EXPERIMENT, "defenses": EXPERIMENT["defenses"][:1]}
    other = local_simulate(experiment_from(plain, "test"), tmp_path / "run")
    assert (whole.path / "parameters.safetensors").read_bytes() == (
        other.path / "parameters.safetensors"
    ).read_bytes()
    secure, own = Record(whole.record), Record(other.record)
    assert secure.rounds == own.rounds == [1, 2, 3, 4, 5]
    for round in secure.rounds:
        learners, gradients = own.received(round)
        who, mean = secure.received(round)
        assert (who, secure.mean_of(round)) == ([AGGREGATE], learners)
        assert len(mean["head.weight"]) == 1
        assert abs(mean["head.weight"][0] - gradients["head.weight"].mean(axis=0)).max() < 1e-6
    with pytest.raises(ValueError, match=f"learner {AGGREGATE} is not one of the 12 learners"):
        whole.experiment().federation().learner(secure.received(1)[0][0])


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(tmp_path, whole, monkeypatch, rounds):
    def interrupt(done):
        if done.round == rounds:
            raise Interrupted("now")

    simulation = Simulation(experiment_from(EXPERIMENT, "test"), tmp_path / "run", interrupt)
    with pytest.raises(Interrupted):
        simulation.serve(LocalGrid(client_app(simulation.federation)))
    monkeypatch.setattr(launch, "simulated_on_ray", local_simulate)
    run = resume(simulation.run.path)
    mine, theirs = Record(run.record), Record(whole.record)
    assert mine.rounds == theirs.rounds == [1, 2, 3, 4, 5]
    for round in mine.rounds:
        assert mine.mean_of(round) == theirs.mean_of(round)
        again, first = mine.received(round)[1], theirs.received(round)[1]
        assert all(again[name].tobytes() == value.tobytes() for name, value in first.items())
    assert (run.path / "parameters.safetensors").read_bytes() == (whole.path / "parameters.safetensors").read_bytes()


def test_nothing_is_recorded_where_nothing_was_asked_for(tmp_path):
    quiet = {**EXPERIMENT, "record": {"rounds": 0}, "server": {"rounds": 1}}
    run = local_simulate(experiment_from(quiet, "test"), tmp_path / "run")
    assert not run.record.exists()
    assert run.state().status == "done"
