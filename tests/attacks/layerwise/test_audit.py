"""The audit counts each layer's constraints, and gives no number where they do not apply."""

import pytest
import torch
from torch import nn
from torch.func import jacrev

from metaleak.attacks.layerwise.audit import audit
from metaleak.attacks.layerwise.inversion_bound import inversion_bounds, noise_like
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP, Conv4, LeNet, TorchModule
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML


def audited(model, shape=(1, 16, 16), ways=3):
    made = TorchModule(model) if isinstance(model, nn.Module) else model
    return audit(made, made.initialize(shape, ways, keyed_generator("start")), shape)


def test_a_chain_of_invertible_layers_has_a_security_number():
    found = audited(LeNet(filters=4))
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "conv3", "head"]
    assert (found.covered, found.c) == ("exact", found.c_of_convolutions)
    assert found.c == pytest.approx(sum(layer.contribution or 0 for layer in found.layers))
    assert found.i2f > 0


def test_relu_after_a_convolution_makes_it_an_upper_bound():
    assert audited(Conv4(filters=4, normalization="none")).covered == "at most"
    assert audited(MLP(hidden=(8,))).covered == "exact"


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(784, 3)

    def forward(self, images):
        features = torch.tanh(self.first(images))
        return self.out((features + torch.tanh(self.second(features))).flatten(1))


@pytest.mark.parametrize(
    ("model", "note"),
    [
        (Conv4(filters=4), "mul is not covered"),
        (Conv4(filters=4, normalization="none", downsample="max"), "followed by max_pool2d"),
        (Skip(), "takes a sum or a list of first and second"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 3)), "batch_norm is not"),
    ],
)
def test_layers_that_are_not_covered_are_named_and_leave_no_number(model, note):
    found = audited(model)
    assert (found.covered, found.c) == ("no", None)
    assert found.c_of_convolutions is not None
    assert any(note in layer.note for layer in found.layers)


def shares_of_two(parameters, model):
    labels = torch.tensor([0, 1, 2])

    def shares(images):
        episode = Episode(images[:3], labels, images[3:], labels)
        return MAML(inner_rate=0.1).meta_gradient(model, parameters, episode)[0]

    return shares


def test_i2f_is_computed_from_the_jacobian_also_of_meta_gradients():
    """The Jacobian is with respect to support and query images; least-squares inversions move at least that far."""
    model = MLP(hidden=(6,), activation="tanh")
    fresh = model.initialize((1, 2, 2), 3, keyed_generator("start"))
    shares = shares_of_two({name: value.double() for name, value in fresh.items()}, model)
    images = torch.rand(6, 1, 2, 2, generator=keyed_generator("images"), dtype=torch.float64)
    change = noise_like(shares(images), 0.01, seed=0)
    jacobian = torch.cat([rows.reshape(-1, 24) for rows in jacrev(shares)(images).values()])
    flat = torch.cat([value.flatten() for value in change.values()])
    expected = (jacobian.T @ flat).norm() / torch.linalg.eigvalsh(jacobian.T @ jacobian)[-1]
    (bound,) = inversion_bounds(shares, images, [change])
    assert bound == pytest.approx(float(expected), rel=1e-4)
    assert bound <= float((torch.linalg.pinv(jacobian) @ flat).norm())


def test_the_power_method_runs_until_it_converges():
    """With eigenvalues close to the largest, 30 iterations have an error of 0.9 %."""
    scale = torch.linspace(0.8, 1.0, 50, dtype=torch.float64)
    images = torch.rand(50, generator=keyed_generator("images"), dtype=torch.float64)
    change = {"w": torch.ones(50, dtype=torch.float64)}
    (bound,) = inversion_bounds(lambda images: {"w": scale * images}, images, [change])
    assert bound == pytest.approx(float(scale.norm()), rel=1e-3)


def test_a_rank_that_takes_too_much_memory_is_not_computed(monkeypatch):
    monkeypatch.setattr("metaleak.attacks.layerwise.audit.MEMORY", 1000)
    found = audited(LeNet(filters=4))
    assert (found.covered, found.c, found.c_of_convolutions) == ("no", None, None)
    assert [layer.rank is None for layer in found.layers] == [True, True, True, False]
    assert found.layers[0].note.startswith("its rank was not computed: that would take")
