"""Activations as seen from their output: the inverse, where there is one, and the derivative."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_EDGE = 1e-15
"""How near to the ends of its range an output is taken at most, relative to 1."""


@dataclass(frozen=True)
class OutputView:
    """One activation: `forward` of `z`; `derivative` and `inverse` of the output `x = forward(z)`, elementwise.

    `inverse` is `None` where several inputs have the same output, as with ReLU.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor] | None


IDENTITY = OutputView("identity", lambda z: z, torch.ones_like, lambda x: x)


def activation_of(name: str, constants: tuple[float, ...] = ()) -> OutputView:
    """Return the activation that torch calls `name`, with the numbers that it is called with.

    Those that are not stated are torch's defaults. Raises `ValueError` for one that is not known here.
    """
    if name == "relu":
        return OutputView(name, F.relu, lambda x: (x > 0).to(x), None)
    if name == "sigmoid":
        return OutputView(
            name, torch.sigmoid, lambda x: x * (1 - x), lambda x: torch.logit(x.clamp(_EDGE, 1 - _EDGE))
        )
    if name == "tanh":
        return OutputView(name, torch.tanh, lambda x: 1 - x**2, lambda x: torch.atanh(x.clamp(_EDGE - 1, 1 - _EDGE)))
    if name == "leaky_relu":
        return _leaky(constants[0] if constants else 0.01)
    if name == "elu":
        return _elu(constants[0] if constants else 1.0)
    if name == "softplus":
        return _softplus(*(constants or (1.0,))[:1])
    raise ValueError(f"the activation {name} is not known here: known are {', '.join(KNOWN)}")


KNOWN = ("relu", "leaky_relu", "elu", "softplus", "sigmoid", "tanh")


def _leaky(slope: float) -> OutputView:
    if slope <= 0:
        # As with ReLU, outputs of 0 (or, below that, positive ones) come from more than one input.
        return OutputView("leaky_relu", lambda z: F.leaky_relu(z, slope), lambda x: (x > 0).to(x), None)
    return OutputView(
        "leaky_relu",
        lambda z: F.leaky_relu(z, slope),
        lambda x: torch.where(x > 0, torch.ones_like(x), torch.full_like(x, slope)),
        lambda x: torch.where(x > 0, x, x / slope),
    )


def _elu(alpha: float) -> OutputView:
    return OutputView(
        "elu",
        lambda z: F.elu(z, alpha),
        lambda x: torch.where(x > 0, torch.ones_like(x), x + alpha),
        lambda x: torch.where(x > 0, x, torch.log1p((x / alpha).clamp(min=_EDGE - 1))),
    )


def _softplus(beta: float) -> OutputView:
    def inverse(x: Tensor) -> Tensor:
        positive = x.clamp(min=_EDGE)
        return positive + torch.log(-torch.expm1(-beta * positive)) / beta

    # From a threshold on torch computes it as the identity; the difference there is below 1e-8.
    return OutputView(
        "softplus",
        # Torch's own overflows without its threshold.
        lambda z: torch.logaddexp(beta * z, torch.zeros_like(z)) / beta,
        lambda x: -torch.expm1(-beta * x),
        inverse,
    )
