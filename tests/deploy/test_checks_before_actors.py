"""What is wrong with an experiment is told in one line before any actor starts, and leaves nothing behind."""

import pytest

from metaleak.clients.models import MLP
from metaleak.deploy import launch
from metaleak.deploy.experiment import experiment_from
from metaleak.deploy.launch import simulate

SMALL = {
    "data": {"name": "digits"},
    "task": {"ways": 3},
    "partition": {"learners": 6},
    "model": {"name": "mlp", "hidden": [16]},
    "server": {"rounds": 1},
    "attacks": [],
}


class Normalising(MLP):
    """Says that the images meet its first weight as they are, and normalises them first."""

    @property
    def input_weight(self):
        return "layer1.weight"

    def __call__(self, parameters, images):
        return super().__call__(parameters, (images - 0.13) / 0.31)


class Silent(MLP):
    """The same, and says nothing of itself."""

    def __call__(self, parameters, images):
        return super().__call__(parameters, (images - 0.13) / 0.31)


@pytest.fixture
def no_ray(monkeypatch):
    """Count the engines that are made and closed instead of starting Ray."""
    engines = []

    class Engine:
        def __init__(self, settings, learners):
            self.closed = False
            engines.append(self)

        def close(self):
            self.closed = True

    monkeypatch.setattr(launch, "RayEngine", Engine)
    return engines


def of(model, **changes):
    return experiment_from({**SMALL, "model": {"name": f"{__name__}:{model}", "hidden": [16]}, **changes}, "test")


def test_a_model_that_says_what_it_does_not_do_is_found(tmp_path, no_ray):
    with pytest.raises(ValueError, match=r"another in the span .* input_weight") as caught:
        simulate(of("Normalising"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert [engine.closed for engine in no_ray] == [True]


def test_a_model_that_says_nothing_of_itself_is_not_suspected(tmp_path):
    launch.Simulation(of("Silent"), tmp_path / "run")


def test_a_place_that_is_taken_is_told_before_ray_starts(tmp_path, no_ray):
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="exists already"):
        simulate(experiment_from(SMALL, "test"), tmp_path)
    assert no_ray == []


def test_of_two_troubles_the_experiments_own_is_told(tmp_path, monkeypatch):
    def unreachable(settings, learners):
        raise ConnectionError("no cluster there")

    monkeypatch.setattr(launch, "RayEngine", unreachable)
    with pytest.raises(ValueError, match="another in the span"):
        simulate(of("Normalising"), tmp_path / "run")
    with pytest.raises(ConnectionError):
        simulate(experiment_from(SMALL, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
