"""Least-squares solution of a layer's constraints without forming their matrix."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from metaleak.attacks.layerwise.operators import LayerOperator

_PASSES = 2
"""How often the system is solved, each time for the remaining residual."""


@dataclass(frozen=True)
class Solution:
    """The least-squares solution `x` of least norm, and its residual.

    `residual` is the norm of the residual divided by that of the right-hand side, 0 for an exact solution;
    `iterations` is the number of LSMR iterations.
    """

    x: Tensor
    residual: float
    iterations: int


@dataclass(frozen=True)
class Constraints:
    """The linear constraints on a layer's input from its weight and gradient: `W x = z` and `K(dz) x = gradient`.

    `z`, shaped like the output, is without the bias; `None` if it is not known. Rows from the gradient are scaled to
    the length of those from the weight, which does not change the solution of a consistent system.
    """

    operator: LayerOperator
    dz: Tensor
    gradient: Tensor
    z: Tensor | None = None

    @property
    def scale(self) -> float:
        """The scaling factor of the gradient's rows."""
        lengths = float(self.dz.norm()) * float(self.operator.weight.numel()) ** 0.5
        weights = float(self.operator.weight.norm()) * float(self.dz.numel()) ** 0.5
        return weights / lengths if lengths > 0 else 0.0

    def apply(self, x: Tensor) -> Tensor:
        """Return the left-hand sides of all constraints at `x`, as one vector."""
        rows = [self.scale * self.operator.weight_gradient(x, self.dz).flatten()]
        return torch.cat([*([] if self.z is None else [self.operator.forward(x).flatten()]), *rows])

    def adjoint(self, values: Tensor) -> Tensor:
        """Return the adjoint of `apply` on a vector of the shape that it returns, shaped like `x`."""
        gradient = values[values.numel() - self.gradient.numel() :].reshape(self.gradient.shape)
        x = self.scale * self.operator.weight_gradient_adjoint(gradient, self.dz)
        if self.z is not None:
            x = x + self.operator.backward(values[: self.z.numel()].reshape(self.z.shape))
        return x

    @property
    def values(self) -> Tensor:
        """The right-hand sides, which `apply` must match, as one vector."""
        known = [] if self.z is None else [self.z.flatten()]
        return torch.cat([*known, self.scale * self.gradient.flatten()])


def solve(constraints: Constraints, iterations: int = 5000, tolerance: float = 1e-13) -> Solution:
    """Return the least-squares solution of least norm, by LSMR (Fong and Saunders 2011) in float64.

    Stores no more than a few vectors of the layer's size. `tolerance` is LSMR's relative tolerance on the residual
    and on its gradient.
    """
    shape = constraints.operator.input_shape
    wanted = constraints.values
    given = wanted.dtype

    def forward(x: np.ndarray) -> np.ndarray:
        return np.asarray(constraints.apply(torch.from_numpy(x.reshape(shape)).to(given)).double())

    def backward(values: np.ndarray) -> np.ndarray:
        return np.asarray(constraints.adjoint(torch.from_numpy(values.ravel()).to(given)).double().flatten())

    operator = LinearOperator((wanted.numel(), prod(shape)), matvec=forward, rmatvec=backward, dtype=np.float64)
    target = np.asarray(wanted.double())
    found, left, taken = np.zeros(prod(shape)), target, 0
    for _ in range(_PASSES):
        # Solved again for the residual, since LSMR's recurrences lose some digits.
        step, _, more, *_ = lsmr(operator, left, atol=tolerance, btol=tolerance, conlim=0, maxiter=iterations)
        improved = found + step
        still = target - forward(improved)
        taken += int(more)
        if taken > more and np.linalg.norm(still) >= np.linalg.norm(left):
            break
        found, left = improved, still
    size = float(np.linalg.norm(target))
    missed = float(np.linalg.norm(left)) / size if size > 0 else 0.0
    return Solution(torch.from_numpy(found).reshape(shape).to(given), missed, taken)
