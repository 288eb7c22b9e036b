"""R-GAP and the hybrid method as an attack on an app whose clients hold one image each."""

from dataclasses import replace

import pytest
import torch
from flower_apps.fedavg import MEAN, STD, run_app
from flower_apps.networks import NETWORKS
from torch import nn

from metaleak.attacks.attack import Reconstructs
from metaleak.attacks.foreign_app import observed_app
from metaleak.attacks.layerwise.layer_attack import LayerByLayer
from metaleak.attacks.observation import Update
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.rules import FedAvg
from metaleak.server import Record


class Strided(nn.Sequential):
    """A convolution with more constraints than unknowns, and a classifier."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 8, 5, 2, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))


def observed(path, network, **clients):
    truth = run_app(path / "record", model=network, clients=3, rate=0.1, **clients)
    update = Update.of_record(Record(path / "record"), 1, holds="weights")
    found = observed_app(update, NETWORKS[network](), FedAvg(rate=0.1), 1, (1, 28, 28), mean=[MEAN], std=[STD])
    images = EmbeddedMNIST().load().examples.float() / 255
    return found, torch.stack([images[truth.members[learner]] for learner in update.learners])


def psnr(made, held):
    return -10 * torch.log10(((made - held) ** 2).flatten(1).mean(dim=1))


@pytest.mark.parametrize(("network", "least"), [("mlp", 80), ("strided", 40)])
def test_the_one_image_of_every_client_is_reconstructed_as_it_was_before_normalization(
    tmp_path, monkeypatch, network, least
):
    monkeypatch.setitem(NETWORKS, "strided", Strided)
    observation, held = observed(tmp_path, network, fewest=1, most=1)
    made = LayerByLayer(method="r-gap").reconstruct(observation, seed=0)
    assert made.examples.shape == held.shape
    assert psnr(made.examples[:, 0], held[:, 0]).min() > least
    assert made.confidence.min() > 0.99


def test_clients_with_more_than_one_image_are_detected_and_not_reconstructed(tmp_path):
    observation, _ = observed(tmp_path, "mlp", fewest=2, most=2)
    with pytest.raises(ValueError, match="no learner's gradient is that of a single example"):
        LayerByLayer().reconstruct(observation, seed=0)
    single, held = observed(tmp_path / "single", "mlp", fewest=1, most=1)
    mixed = {
        name: torch.cat([observation.gradients[name][:1], value[1:]]) for name, value in single.gradients.items()
    }
    made = LayerByLayer().reconstruct(replace(single, gradients=mixed), seed=0)
    assert (made.examples[0] == 0.5).all()
    for spoil in (lambda value: value * torch.nan, lambda value: value * 0):
        spoiled = {name: torch.cat([spoil(value[:1]), value[1:]]) for name, value in single.gradients.items()}
        again = LayerByLayer().reconstruct(replace(single, gradients=spoiled), seed=0)
        assert torch.equal(again.examples, made.examples)
    assert made.confidence[:, 0].tolist() == [0.0, *made.confidence[1:, 0].tolist()]
    assert psnr(made.examples[1:, 0], held[1:, 0]).min() > 80


def test_a_network_that_cannot_be_inverted_is_refused_by_the_layer_s_name(tmp_path):
    observation, _ = observed(tmp_path, "cnn", fewest=1, most=1)
    with pytest.raises(ValueError, match="conv1"):
        LayerByLayer().reconstruct(observation, seed=0)


def test_it_only_reconstructs():
    assert isinstance(LayerByLayer(), Reconstructs)
