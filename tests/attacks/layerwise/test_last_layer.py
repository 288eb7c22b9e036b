"""All solutions returned for the last layer are solutions, and the true one is among them."""

import pytest
import torch

from metaleak.attacks.layerwise.activations import IDENTITY
from metaleak.attacks.layerwise.chain import Stage
from metaleak.attacks.layerwise.last_layer import candidates
from metaleak.attacks.layerwise.operators import Dense
from metaleak.clients.randomness import keyed_generator


def solved(spread, dtype, seed):
    """Return an example's input to a layer of 6 logits without bias, and all solutions of its gradient."""
    generator = keyed_generator("layer", seed)
    weight = spread * torch.randn(6, 4, generator=generator, dtype=dtype)
    x = torch.randn(4, generator=generator, dtype=dtype)
    dz = torch.softmax(weight @ x, dim=0)
    dz[0] -= 1.0
    found = candidates(
        Stage("last", Dense(weight), None, IDENTITY, "w", None), {"w": torch.outer(dz, x)}, "cross_entropy"
    )
    return weight, x, found


@pytest.mark.parametrize("seed", range(10))
def test_every_solution_matches_all_probabilities(seed):
    weight, x, found = solved(1.0, torch.float64, seed)
    for one in found:
        dz = torch.softmax(weight @ one.x, dim=0)
        dz[int(one.dz.argmin())] -= 1.0
        assert torch.allclose(dz, one.dz, atol=1e-6)
    assert min(float((one.x - x).norm()) for one in found) < 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_probabilities_below_the_precision_do_not_hide_the_solution(seed):
    _, x, found = solved(30.0, torch.float32, seed)
    assert min(float((one.x - x).norm()) for one in found) < 1e-2 * float(x.norm())
