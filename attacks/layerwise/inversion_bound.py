"""I2F: how far a change of the shared gradient moves the examples that an inversion finds (Zhang et al. 2023)."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp, vjp

from metaleak.clients.episode import Parameters

Shares = Callable[[Tensor], Parameters]
"""The shared gradient or meta-gradient as a differentiable function of the examples."""


def inversion_bounds(
    shares: Shares,
    examples: Tensor,
    changes: Sequence[Parameters],
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> list[float]:
    """Return a lower bound on the distance by which each of `changes` moves the examples that an inversion finds.

    The bound is `||J d|| / lambda_max(J J^T)`, to first order in the change d, with the Jacobian J of `shares` (Zhang
    et al. 2023, "Understanding deep gradient leakage via inversion influence functions"). It holds for an inversion
    that matches the changed gradient as well as possible, and not for others. `examples` have any shape; the distance
    is the L2 norm over all of them. The largest eigenvalue is computed by the power method on Jacobian-vector
    products, until its relative change is below `tolerance`, in at most `iterations` steps. The method converges from
    below, so the result exceeds the bound by the relative error of the eigenvalue. It is infinite if `shares` does
    not depend on the examples.
    """
    pull = vjp(shares, examples)[1]

    def push(direction: Tensor) -> Parameters:
        with warnings.catch_warnings():
            # Torch warns about the way in which it compiles its own forward derivatives.
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
    """Return Gaussian noise shaped like `gradient`, with `part` times its norm."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        for name, value in gradient.items()
    }
    scale = part * _norm(gradient) / _norm(drawn)
    return {name: value * scale for name, value in drawn.items()}


def _norm(tensors: Parameters) -> float:
    return float(torch.stack([value.square().sum() for value in tensors.values()]).sum().sqrt())
