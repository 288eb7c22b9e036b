"""Gauss-Newton steps on what an example misses, by Jacobian-vector products and never a matrix."""

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
"""Below this relative residual the constraints count as met."""

_SHARPEST = 1e-3
"""Differences of neighbors below this are smoothed quadratically, those above by their size."""


@dataclass(frozen=True)
class Prior:
    """What is believed of examples beside their constraints: the weight of the total variation, and of the range."""

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
    """Return the example and its residual after Gauss-Newton steps from `start`, those of least objective.

    `residual` is by how much an example `(C, H, W)` misses its constraints, a vector, differentiable twice.
    Each step is solved by `inner` iterations of LSMR at most. The total variation is met by weights of its squares
    that are renewed a step.
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
            # Also where it is not a number.
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
    """Return the differences of neighbors in the last two axes, as one vector."""
    return torch.cat([(x[..., 1:, :] - x[..., :-1, :]).flatten(), (x[..., 1:] - x[..., :-1]).flatten()])


def _step(full: Callable[[Tensor], Tensor], x: Tensor, damping: float, inner: int) -> Tensor:
    """Return the step that meets the linearized `full` best, damped (Levenberg and Marquardt), by LSMR."""
    with warnings.catch_warnings():
        # Torch warns of how it compiles its own forward derivatives.
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
