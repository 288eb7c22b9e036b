"""Where a node computes: everything follows the parameters, on whatever device they are."""

import pytest
import torch

from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.device import torch_device
from metaleak.clients.models import MLP, Conv4, LeNet
from metaleak.clients.rules import MAML, Reptile, anil
from metaleak.defenses import Noise


def federation(model, rule, defenses=()):
    return Federation(
        seed=1,
        data=EmbeddedMNIST(),
        task=TaskShape(ways=5),
        partition=Partition(learners=6),
        model=model,
        rule=rule,
        defenses=defenses,
    )


@pytest.mark.parametrize("model", [MLP(hidden=(8,)), LeNet(filters=3), Conv4(filters=4)], ids=str)
@pytest.mark.parametrize("rule", [MAML(), anil(), Reptile(inner_steps=2)], ids=str)
@pytest.mark.parametrize("place", [None, "support", "query", "shared", "inner"])
def test_a_cohort_is_computed_where_the_parameters_are(model, rule, place):
    """torch's `meta` device computes shapes alone, and refuses to mix with the CPU as a GPU does."""
    defenses = () if place is None else (Noise(place=place),)
    known = federation(model, rule, defenses)
    parameters = {name: value.to("meta") for name, value in known.initial_parameters().items()}
    gradients, losses = cohort_meta_gradients(known.learners([0, 1, 2, 3]), parameters, round=1, chunk=4)
    assert losses.device.type == "meta"
    assert {name: (value.device.type, tuple(value.shape)) for name, value in gradients.items()} == {
        name: ("meta", (4, *value.shape)) for name, value in parameters.items()
    }


def test_the_gpu_is_taken_when_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_device("auto").type == torch_device("cuda").type == "cuda"
    assert torch_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="torch sees no GPU here"):
        torch_device("cuda")
