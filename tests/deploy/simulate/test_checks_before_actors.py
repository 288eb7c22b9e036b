"""What is wrong with an experiment is told in one line before any actor starts, and leaves nothing behind."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate import chosen_chunk, launch
from metaleak.deploy.simulate.launch import simulate, simulate_here
from metaleak.deploy.simulate.simulation import Simulation

SMALL = {
    "data": {"name": "digits"},
    "task": {"ways": 3},
    "partition": {"learners": 6},
    "model": {"name": "mlp", "hidden": [16]},
    "server": {"rounds": 1},
    "attacks": [],
}


class Normalizing(MLP):
    """Says that the images meet its first weight as they are, and normalizes them first."""

    @property
    def input_weight(self):
        return "layer1.weight"

    def __call__(self, parameters, images):
        return super().__call__(parameters, (images - 0.13) / 0.31)


class Silent(MLP):
    """The same, and says nothing of itself."""

    def __call__(self, parameters, images):
        return super().__call__(parameters, (images - 0.13) / 0.31)


class Decaying(MAML):
    """Says that what it sends stays in the span of the images, and adds weight decay to it."""

    stays_in_span: ClassVar[bool] = True
    decay: float

    def meta_gradient(self, model, parameters, episode, perturb=None):
        gradient, loss = super().meta_gradient(model, parameters, episode, perturb)
        return {name: value + self.decay * parameters[name] for name, value in gradient.items()}, loss


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
    with pytest.raises(ValueError, match=r"differs when computed in the span .* input_weight") as caught:
        simulate(of("Normalizing"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert [engine.closed for engine in no_ray] == [True]


def decaying(decay):
    rule = {"name": f"{__name__}:Decaying", "decay": decay}
    return experiment_from({**SMALL, "rule": rule}, "test")


@pytest.mark.parametrize("error", [0.074, 0.01])
def test_a_rule_whose_decay_leaves_the_span_is_found(tmp_path, no_ray, error):
    federation = decaying(0.0).federation()
    parameters = federation.initial_parameters()
    first = federation.learner(0).meta_gradient(parameters, 1)[0]["layer1.weight"]
    decay = error * float(first.norm() / parameters["layer1.weight"].norm())
    with pytest.raises(
        ValueError, match=r"layer1\.weight differs when computed in the span .* stays_in_span"
    ) as caught:
        simulate(decaying(decay), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rule", ["maml", "fomaml", "anil", "reptile", "fedsgd", "fedavg"])
@pytest.mark.parametrize(
    "model",
    [{"name": "mlp"}, {"name": "mlp", "hidden": []}, {"name": "mlp", "activation": "tanh", "bias": False}],
    ids=str,
)
def test_what_is_ours_keeps_its_promise(tmp_path, model, rule):
    Simulation(experiment_from({**SMALL, "model": model, "rule": {"name": rule}}, "test"), tmp_path / "run")


def test_a_model_that_says_nothing_of_itself_is_not_suspected(tmp_path):
    Simulation(of("Silent"), tmp_path / "run")


def test_a_place_that_is_taken_is_told_before_ray_starts(tmp_path, no_ray):
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="exists already"):
        simulate(experiment_from(SMALL, "test"), tmp_path)
    assert no_ray == []


def test_of_two_troubles_the_experiments_own_is_told(tmp_path, monkeypatch):
    def unreachable(settings, learners):
        raise ConnectionError("no cluster there")

    monkeypatch.setattr(launch, "RayEngine", unreachable)
    with pytest.raises(ValueError, match="differs when computed in the span"):
        simulate(of("Normalizing"), tmp_path / "run")
    with pytest.raises(ConnectionError):
        simulate(experiment_from(SMALL, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Module(nn.Module):
    """A linear classifier, and a count of its calls."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.register_buffer("calls", torch.zeros(()))


class InPlace(Module):
    def forward(self, images):
        images += 1
        return self.linear(images.flatten(1))


class Counting(Module):
    def forward(self, images):
        self.calls += images.mean()
        return self.linear(images.flatten(1)) * self.calls


class Random(Module):
    def forward(self, images):
        return nn.functional.dropout(self.linear(images.flatten(1)))


class Deciding(Module):
    def forward(self, images):
        return self.linear(images.flatten(1)) * (2 if images.sum() > 0 else 1)


class Unwrapping(Module):
    def forward(self, images):
        return self.linear(torch.from_numpy(images.flatten(1).detach().numpy()))


def normalized() -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(), nn.LazyLinear(3)
    )


def module(name):
    return experiment_from({**SMALL, "model": {"name": f"{__name__}:{name}"}, "engine": {"chunk": 4}}, "test")


@pytest.mark.parametrize("name", ["InPlace", "Counting", "Random", "Deciding", "Unwrapping"])
def test_a_module_that_torch_cannot_vectorize_or_differentiate_is_found(name, tmp_path):
    with pytest.raises(
        ValueError, match=r"the model and the rule (give no|cannot) .*no decisions by values"
    ) as caught:
        simulate_here(module(name), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_module_with_lazy_layers_batch_norm_and_dropout_is_simulated(tmp_path):
    assert simulate_here(module("normalized"), tmp_path / "run").done


def test_a_run_that_cannot_begin_leaves_no_directory(tmp_path, monkeypatch):
    def out_of_memory(federation, device):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(chosen_chunk, "measured_chunk", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        Simulation(experiment_from(SMALL, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
