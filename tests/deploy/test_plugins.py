"""Things by name: built in, from entry points, or `module:Name` of somebody else's."""

import sys

import pytest
import torch

from metaleak.clients.models import TorchModule
from metaleak.deploy.experiment import experiment_from
from metaleak.deploy.plugins import Plugin

SOURCE = """
import torch
from torch import nn
from pydantic import BaseModel

def network(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 3))

class Clip(BaseModel):
    place: str = "shared"
    norm: float = 1.0

    def __call__(self, tensors, random):
        size = sum(value.square().sum() for value in tensors.values()).sqrt()
        return {name: value * min(1.0, self.norm / float(size)) for name, value in tensors.items()}

def broken():
    raise TypeError("nothing works")
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("theirs", None)


@pytest.mark.usefixtures("theirs")
def test_a_stranger_brings_a_torch_module_and_a_defence_without_a_change_here():
    experiment = experiment_from(
        {
            "data": {"name": "digits"},
            "task": {"ways": 3},
            "partition": {"learners": 4},
            "model": {"name": "theirs:network", "width": 5},
            "defences": [{"name": "theirs:Clip", "norm": 0.01}],
        },
        "x",
    )
    federation = experiment.federation()
    assert isinstance(federation.model, TorchModule)
    start = federation.initial_parameters()
    gradient, _ = federation.learner(1).meta_gradient(start, 1)
    norm = torch.stack([value.square().sum() for value in gradient.values()]).sum().sqrt()
    assert norm.item() == pytest.approx(0.01, rel=1e-4)
    assert experiment.resolved()["defences"] == [{"name": "theirs:Clip", "place": "shared", "norm": 0.01}]


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize(
    ("plugin", "kind", "said"),
    [
        (Plugin(name="theirs:network", depth=3), "models", "cannot be made"),
        (Plugin(name="theirs:broken"), "models", "nothing works"),
        (Plugin(name="theirs:absent"), "models", "absent"),
        (Plugin(name="theirs:Clip"), "rules", "not a Rule"),
        (Plugin(name="mlp"), "rules", "unknown 'mlp', allowed are anil, fomaml, maml, reptile"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(plugin, kind, said):
    with pytest.raises(ValueError, match=said) as caught:
        plugin.build(kind)
    assert "\n" not in str(caught.value)
