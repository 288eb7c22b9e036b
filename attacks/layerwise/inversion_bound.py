"""I2F: how far an inversion that matches what is shared moves an example when that is changed (Zhang et al. 2023)."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp, vjp

from metaleak.clients.episode import Parameters

Shares = Callable[[Tensor], Parameters]
"""What is shared, a gradient or a meta-gradient, as a differentiable function of the examples."""


def inversion_bounds(
    shares: Shares,
    examples: Tensor,
    changes: Sequence[Parameters],
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> list[float]:
    """Return by what distance at least each of `changes` moves the examples that an inversion finds.

    It is `||J d|| / lambda_max(J J^T)` with the Jacobian J of what is shared, to first order in the change d (Zhang
    et al. 2023, "Understanding deep gradient leakage via inversion influence functions"): for an inversion that
    matches the changed gradient as well as possible; others may be moved less. `examples` have any shape, and the
    distance is over all of them together. The largest eigenvalue is that of the power method on Jacobian-vector
    products, until it changes by a part of less than `tolerance`, after `iterations` at most. The method approaches
    it from below, so what is returned is above the bound by about as much as the eigenvalue is not yet found.
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
        before, largest = largest, float(direction.norm())
        if largest == 0:
            return [float("inf") for _ in changes]
        if abs(largest - before) <= tolerance * largest:
            break
    return [float(pull(change)[0].detach().norm()) / largest for change in changes]


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
