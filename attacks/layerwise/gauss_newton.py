"""Gauss-Newton steps on the residual of an example's constraints, by Jacobian-vector products alone."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor
from torch.func import linearize, vjp

_EXACT = 1e-10
"""Constraints with a relative residual below this count as satisfied."""

_SHARPEST = 1e-3
"""Differences between neighboring pixels are penalized quadratically below this and linearly above."""


@dataclass(frozen=True)
class Prior:
    """The weights of the prior on examples: of total variation, and of leaving the range of pixels."""

    variation: float = 1e-3
    range: float = 0.1


def gauss_newton(
    residual: Callable[[Tensor], Tensor],
    start: Tensor,
    prior: Prior,
    limits: tuple[float, float],
    steps: int,
    inner: int = 400,
) -> tuple[Tensor, float]:
    """Return the example of least objective after Gauss-Newton steps from `start`, and the norm of its residual.

    `residual` maps an example `(C, H, W)` to the vector of its constraint violations and must be twice
    differentiable. Each step takes at most `inner` iterations of LSMR. The total variation is handled by iteratively
    reweighted least squares, with new weights in every step.
    """
    low, high = limits
    x = start
    damping = 1e-3
    value = _objective(residual, x, prior, limits)
    for _ in range(steps):
        rows = 1.0 / (_differences(x).abs() + _SHARPEST).sqrt()
        outside = ((x < low) | (x > high)).to(x)

        def full(x: Tensor, rows: Tensor = rows, outside: Tensor = outside) -> Tensor:
            beyond = outside * (x - x.detach().clamp(low, high))
            count = x.numel() ** 0.5
            smooth = (prior.variation / count) ** 0.5 * rows * _differences(x) / count**0.5
            return torch.cat([residual(x), prior.range * beyond.flatten() / count, smooth])

        step = _step(full, x, damping, inner)
        for shrink in (1.0, 0.5, 0.25, 0.1):
            trial = x + shrink * step
            tried = _objective(residual, trial, prior, limits)
            if tried < value:
                break
        if not tried < value:
            # Also true for NaN.
            damping *= 10
            if damping > 10:
                break
            continue
        x, value, damping = trial, tried, max(damping / 3, 1e-9)
        if float(residual(x).norm()) < _EXACT:
            break
    return x, float(residual(x).norm())


def _objective(residual: Callable[[Tensor], Tensor], x: Tensor, prior: Prior, limits: tuple[float, float]) -> float:
    beyond = torch.relu(limits[0] - x) + torch.relu(x - limits[1])
    return float(
        residual(x).square().sum()
        + prior.range**2 * beyond.square().mean()
        + prior.variation * _differences(x).abs().sum() / x.numel()
    )


def _differences(x: Tensor) -> Tensor:
    """Return the differences of neighboring entries along the last two axes, as one vector."""
    return torch.cat([(x[..., 1:, :] - x[..., :-1, :]).flatten(), (x[..., 1:] - x[..., :-1]).flatten()])


def _step(full: Callable[[Tensor], Tensor], x: Tensor, damping: float, inner: int) -> Tensor:
    """Return the damped least-squares step of the linearized `full` (Levenberg and Marquardt), by LSMR."""
    with warnings.catch_warnings():
        # Torch warns about the way in which it compiles its own forward derivatives.
        warnings.simplefilter("ignore")
        values, push = linearize(full, x)
    pull = vjp(full, x)[1]

    def forward(step: np.ndarray) -> np.ndarray:
        return np.asarray(push(torch.from_numpy(step.reshape(x.shape)).to(x)).double())

    def backward(change: np.ndarray) -> np.ndarray:
        return np.asarray(pull(torch.from_numpy(change.ravel()).to(x))[0].double().flatten())

    operator = LinearOperator((values.numel(), prod(x.shape)), matvec=forward, rmatvec=backward, dtype=np.float64)
    found = lsmr(
        operator, -np.asarray(values.double()), damp=damping, atol=1e-12, btol=1e-12, conlim=0, maxiter=inner
    )
    return torch.from_numpy(np.asarray(found[0])).reshape(x.shape).to(x)
