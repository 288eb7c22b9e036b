"""Things by name: built in, from entry points, or `module:Name` of somebody else's."""

import builtins
import os
import shutil
import subprocess
import sys
from typing import get_args

import pytest
import torch

from metaleak.clients.models import TorchModule
from metaleak.deploy.config.plugins import Kind, Plugin
from metaleak.deploy.config.reading import experiment_from

SOURCE = """
import torch
from torch import nn
from pydantic import BaseModel

def network(width=4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 3))

class Clip(BaseModel):
    place: str = "shared"
    norm: float = 1.0

    def __call__(self, tensors, random):
        size = sum(value.square().sum() for value in tensors.values()).sqrt()
        return {name: value * min(1.0, self.norm / float(size)) for name, value in tensors.items()}

def broken() -> nn.Module:
    raise TypeError("nothing works")

def unsaid():
    raise AssertionError("was called")

class Later:
    def __init__(self):
        raise AssertionError("was called")
    def __call__(self, tensors, generator):
        return tensors
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("theirs", None)


@pytest.mark.usefixtures("theirs")
def test_a_stranger_brings_a_torch_module_and_a_defense_without_a_change_here():
    experiment = experiment_from(
        {
            "data": {"name": "digits"},
            "task": {"ways": 3},
            "partition": {"learners": 4},
            "model": {"name": "theirs:network", "width": 5},
            "defenses": [{"name": "theirs:Clip", "norm": 0.01}],
        },
        "x",
    )
    federation = experiment.federation()
    assert isinstance(federation.model, TorchModule)
    start = federation.initial_parameters()
    gradient, _ = federation.learner(1).meta_gradient(start, 1)
    norm = torch.stack([value.square().sum() for value in gradient.values()]).sum().sqrt()
    assert norm.item() == pytest.approx(0.01, rel=1e-4)
    assert experiment.resolved()["defenses"] == [{"name": "theirs:Clip", "place": "shared", "norm": 0.01}]


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize(
    ("plugin", "kind", "said"),
    [
        (Plugin(name="theirs:network", depth=3), "models", "depth: unknown key 'depth', allowed are width, got 3"),
        (Plugin(name="theirs:broken"), "models", "nothing works"),
        (Plugin(name="theirs:absent"), "models", "absent"),
        (Plugin(name="theirs:Clip"), "rules", "not a Rule"),
        (Plugin(name="theirs:unsaid"), "models", "neither a class nor a function that says in its return annotation"),
        (Plugin(name="theirs:unsaid"), "defenses", "which Defense it makes"),
        (Plugin(name="theirs:Later"), "defenses", "not a Defense: it has no place"),
        (Plugin(name="mlp"), "rules", "unknown name 'mlp', .*anil, .*maml, reptile"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(plugin, kind, said):
    with pytest.raises(ValueError, match=said) as caught:
        plugin.build(kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize(
    ("module", "name"), [(subprocess, "Popen"), (os, "system"), (builtins, "print"), (shutil, "rmtree")]
)
def test_what_cannot_make_such_a_thing_is_never_called(kind, module, name, tmp_path, monkeypatch):
    plugin = Plugin(name=f"{module.__name__}:{name}", args=["touch", str(tmp_path / "ran")])
    with pytest.raises(ValueError, match=r"not a |neither a class nor"):
        plugin.build(kind)
    called = []
    if not isinstance(getattr(module, name), type):
        monkeypatch.setattr(module, name, lambda **settings: called.append(settings))
        with pytest.raises(ValueError, match="return annotation"):
            plugin.build(kind)
    assert not called
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "known"),
    [("query", "attacks", "iterations"), ("dlg", "attacks", "optimizer"), ("fomaml", "rules", "inner_rate")],
)
def test_a_wrong_key_lists_those_of_a_factory_that_is_a_function(name, kind, known):
    with pytest.raises(
        ValueError, match=rf"wrong.*{known}|{known}.*wrong|unexpected keyword argument 'wrong'"
    ) as caught:
        Plugin(name=name, wrong=3).build(kind)
    assert known in str(caught.value)
