"""Activations are inverted from their outputs."""

import torch

from metaleak.attacks.layerwise.activations import activation_of


def test_softplus_does_not_overflow_in_float32():
    z = torch.tensor([-5.0, 0.0, 3.0, 89.0, 1000.0])
    for beta in (0.5, 1.0, 3.0):
        made = activation_of("softplus", (beta, 20.0))
        assert torch.allclose(made.forward(z), torch.nn.functional.softplus(z, beta))
        assert torch.allclose(made.inverse(made.forward(z)), z, atol=1e-4)
