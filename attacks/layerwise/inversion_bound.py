"""I2F: how far any inversion must move an example when what is shared is changed (Zhang et al. 2023)."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp

from metaleak.clients.episode import Parameters

Shares = Callable[[Tensor], Parameters]
"""What is shared, a gradient or a meta-gradient, as a differentiable function of the examples."""


def inversion_bound(shares: Shares, examples: Tensor, change: Parameters, iterations: int = 30) -> float:
    """Return a lower bound on the distance by which `change` moves the examples that an inversion finds.

    It is `||J d|| / lambda_max(J J^T)` with the Jacobian J of what is shared, to first order in the change d (Zhang
    et al. 2023, "Understanding deep gradient leakage via inversion influence functions"): for an inversion that
    matches the changed gradient as well as possible. `examples` have any shape, and the distance is over all of them
    together; the largest eigenvalue is found by `iterations` of the power method, on Jacobian-vector products alone.
    Infinity where what is shared does not depend on the examples.
    """
    pull = vjp(shares, examples)[1]

    def push(direction: Tensor) -> Parameters:
        with warnings.catch_warnings():
            # Torch's own forward derivatives are compiled in a way that torch itself warns of.
            warnings.simplefilter("ignore", FutureWarning)
            moved: Parameters = jvp(shares, (examples,), (direction,))[1]
        return moved

    direction = torch.randn(examples.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        examples
    )
    largest = 0.0
    for _ in range(iterations):
        direction = direction / direction.norm()
        (direction,) = pull(push(direction))
        direction = direction.detach()
        largest = float(direction.norm())
        if largest == 0:
            return float("inf")
    (moved,) = pull(change)
    return float(moved.detach().norm()) / largest


def noise_like(gradient: Parameters, part: float, seed: int) -> Parameters:
    """Return Gaussian noise shaped like `gradient`, of a norm that is `part` of the gradient's."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        for name, value in gradient.items()
    }
    scale = part * _norm(gradient) / _norm(drawn)
    return {name: value * scale for name, value in drawn.items()}


def _norm(tensors: Parameters) -> float:
    return float(torch.stack([value.square().sum() for value in tensors.values()]).sum().sqrt())
