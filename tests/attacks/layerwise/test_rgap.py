"""One example is recovered exactly from its gradient, and a layer that cannot be inverted is named."""

import gzip
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad

from metaleak.attacks.layerwise.chain import chain_of
from metaleak.attacks.layerwise.last_layer import TURNING_POINT, logistic_roots
from metaleak.attacks.layerwise.rgap import reconstruct
from metaleak.clients.datasets import FashionMNIST
from metaleak.clients.models import MLP, Conv4, LeNet, TorchModule
from metaleak.clients.randomness import keyed_generator


@pytest.fixture(scope="module")
def colored(shared_data):
    """Two images of CIFAR-10's test set."""
    with gzip.open(shared_data / "cifar10" / "test_batch.bin.gz") as file:
        raw = np.frombuffer(file.read(2 * 3073), np.uint8)
    return torch.from_numpy(raw.reshape(2, 3073)[:, 1:].copy()).double().reshape(2, 3, 32, 32) / 255


@pytest.fixture(scope="module")
def gray(shared_data):
    """Two images of Fashion-MNIST."""
    found = FashionMNIST(data_dir=shared_data).load().examples[:2]
    return torch.as_tensor(found).reshape(2, 1, 28, 28).double() / 255


def cnn6(second=36, bias=False, logits=1, activation=lambda: nn.LeakyReLU(0.2)):
    """R-GAP's network of six convolutions; CNN6-d has 20 filters in the second."""
    widths, kernels = (
        (3, 12, second, 36, 36, 64, 128),
        ((4, 2, 2), (3, 2, 1), (3, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 1)),
    )
    layers = []
    for place, (kernel, stride, padding) in enumerate(kernels):
        layers += [nn.Conv2d(*widths[place : place + 2], kernel, stride, padding, bias=bias), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3200, logits, bias=bias))


def fcn3(bias=False, logits=1):
    """R-GAP's network of three dense layers."""
    sizes, layers = (784, 1000, 100, logits), [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def inverted(module, image, label=1):
    """Return R-GAP's reconstruction from the gradient of one image at fresh parameters, in float64."""
    model = TorchModule(module)
    logits = model(dict(model.module.named_parameters()), image[None].float()).shape[1]
    fresh = model.initialize(tuple(image.shape), logits, keyed_generator("start"))
    parameters = {name: value.double() for name, value in fresh.items()}

    def loss(parameters):
        logits = model(parameters, image[None])
        if logits.shape[1] == 1:
            return F.softplus(-(2 * label - 1) * logits).sum()
        return F.cross_entropy(logits, torch.tensor([label]))

    chain = chain_of(model, parameters, tuple(image.shape))
    return reconstruct(chain, grad(loss)(parameters), "logistic" if logits == 1 else "cross_entropy")


def psnr(made, image):
    return float(-10 * torch.log10(((made - image) ** 2).mean()))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("logits", [1, 2, 10])
def test_a_dense_networks_image_is_recovered_exactly(gray, bias, logits):
    for label, image in enumerate(gray):
        assert psnr(inverted(fcn3(bias, logits), image, label).example, image) > 200


@pytest.mark.parametrize(("bias", "logits"), [(False, 1), (True, 10)])
def test_a_convolutional_networks_image_is_recovered_exactly(colored, bias, logits):
    found = inverted(cnn6(bias=bias, logits=logits), colored[0])
    assert psnr(found.example, colored[0]) > 200
    assert [layer.name for layer in found.layers] == ["0", "2", "4", "6", "8", "10", "13"]
    assert found.residual < 1e-11


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus])
def test_every_invertible_activation_is_inverted(gray, activation):
    module = nn.Sequential(
        nn.Conv2d(1, 8, 5, 2, 2), activation(), nn.Conv2d(8, 8, 3, 1, (0, 1)), activation(), nn.Flatten(),
        nn.Linear(8 * 12 * 14, 5),
    )  # fmt: skip
    assert psnr(inverted(module, gray[0]).example, gray[0]) > 120


def test_dense_layers_with_biases_are_solved_through_relu(gray):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
    assert psnr(inverted(model, gray[0]).example, gray[0]) > 200


def test_recovery_fails_below_the_layer_that_lacks_constraints(colored):
    found = inverted(cnn6(second=20), colored[0])
    assert psnr(found.example, colored[0]) < 20
    # The second convolution lacks 280 constraints: it is met by many inputs, and the first by none of these.
    assert [layer.residual > 1e-6 for layer in found.layers] == [True] + 6 * [False]


def test_without_biases_both_roots_fit_every_layer_and_the_range_decides(gray):
    """Activations with f(a x) = a f(x) preserve a factor, so that two images have the same gradient."""
    fits = [inverted(fcn3(), gray[0], label) for label in (0, 1)]
    two = next(found for found in fits if found.others)
    (other,) = two.others
    assert max(layer.residual for layer in other) < 1e-12
    factor = other[0].x.norm() / two.example.norm()
    assert torch.allclose(other[0].x, two.example * factor)
    assert psnr(two.example, gray[0]) > 200


def test_the_equation_of_the_last_layer_has_two_roots_below_its_turning_point():
    for value in (0.1, 0.278, -2.0):
        roots = logistic_roots(value)
        assert len(roots) == (2 if value > 0 else 1)
        assert [u / (1 + np.exp(u)) for u in roots] == pytest.approx([value] * len(roots), abs=1e-12)
        assert value < 0 or roots[0] < TURNING_POINT < roots[1]
    assert logistic_roots(0.2785) == []


def between(layer, features):
    return nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(features, 3))


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (between(nn.ReLU(), 2704), "^layer 0, a convolution, is followed by relu"),
        (between(nn.MaxPool2d(2), 676), "^layer 0 is followed by max_pool2d"),
        (between(nn.BatchNorm2d(4), 2704), "^layer 1 is a batch_norm"),
        (between(nn.Softmax(1), 2704), "^layer 0 is followed by softmax"),
        (Conv4(), "^the model is not a chain of layers: block1.add takes block1 and block1.mul"),
    ],
)
def test_a_layer_that_cannot_be_inverted_is_named(gray, model, complaint):
    if isinstance(model, nn.Module):
        with pytest.raises(ValueError, match=complaint):
            inverted(model, gray[0])
        return
    fresh = model.initialize((1, 28, 28), 3, keyed_generator("start"))
    with pytest.raises(ValueError, match=complaint):
        chain_of(model, fresh, (1, 28, 28))


def test_a_scale_between_layers_is_noticed_by_comparing_logits(gray):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(784, 8), nn.Linear(8, 3)

        def forward(self, images):
            return self.last(torch.tanh(self.first(images.flatten(1))) * 2)

    with pytest.raises(ValueError, match="layer first is followed by mul"):
        inverted(Scaled(), gray[0])


@pytest.mark.parametrize("model", [MLP(hidden=(32,), activation="sigmoid"), LeNet()])
def test_shipped_models_are_inverted(gray, model):
    fresh = model.initialize((1, 28, 28), 5, keyed_generator("start"))
    parameters = {name: value.double() for name, value in fresh.items()}
    gradient = grad(lambda p: F.cross_entropy(model(p, gray[:1]), torch.tensor([2])))(parameters)
    found = reconstruct(chain_of(model, parameters, (1, 28, 28)), gradient)
    assert psnr(found.example, gray[0]) > 120
