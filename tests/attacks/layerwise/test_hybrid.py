"""The hybrid method recovers examples where R-GAP lacks constraints."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad

from metaleak.attacks.layerwise.chain import chain_of
from metaleak.attacks.layerwise.gauss_newton import Prior, gauss_newton
from metaleak.attacks.layerwise.hybrid import reconstruct_hybrid
from metaleak.attacks.layerwise.rgap import reconstruct
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.models import TorchModule
from metaleak.clients.randomness import keyed_generator


def both(module):
    """Return the PSNR of R-GAP and of the hybrid method on one digit, cropped to 16x16."""
    image = EmbeddedMNIST().load().examples[7:8, :, 6:22, 6:22].double() / 255
    model = TorchModule(module)
    fresh = model.initialize((1, 16, 16), 5, keyed_generator("start"))
    parameters = {name: value.double() for name, value in fresh.items()}
    gradient = grad(lambda p: F.cross_entropy(model(p, image), torch.tensor([3])))(parameters)
    chain = chain_of(model, parameters, (1, 16, 16))
    made = reconstruct(chain, gradient), reconstruct_hybrid(chain, gradient)
    return [float(-10 * torch.log10(((one.example - image[0]) ** 2).mean())) for one in made]


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(1, 2, 4, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(98, 5)),
        pytest.param(nn.Sequential(
            nn.Conv2d(1, 4, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(),
            nn.Linear(256, 5),
        )),
    ],
    ids=["first layer", "second layer"],
)  # fmt: skip
def test_it_is_better_by_6_db_where_a_layer_lacks_constraints(module):
    alone, hybrid = both(module)
    assert hybrid > alone + 6


def test_it_equals_r_gap_where_no_layer_lacks_constraints():
    alone, hybrid = both(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(784, 5)))
    assert alone == hybrid


def test_a_step_to_nan_is_not_taken():
    start = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    found, missed = gauss_newton(
        lambda x: torch.where(x < 0.6, 1 - x, torch.nan).flatten(), start, Prior(), (0, 1), 3
    )
    assert torch.isfinite(found).all()
    assert missed <= 1.0
