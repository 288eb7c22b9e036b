"""Activations with their inverses, where they exist, and their derivatives, as functions of the output."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_EDGE = 1e-15
"""Outputs are clamped to at least this distance from the ends of their range."""


@dataclass(frozen=True)
class Activation:
    """An elementwise activation `x = forward(z)`; its `derivative` and `inverse` are functions of the output `x`.

    `inverse` is `None` where several inputs have the same output, as with ReLU.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor] | None


IDENTITY = Activation("identity", lambda z: z, torch.ones_like, lambda x: x)


def activation_of(name: str, constants: tuple[float, ...] = ()) -> Activation:
    """Return the activation that torch calls `name`, with the `constants` that it is called with.

    Missing constants have torch's defaults. Raises `ValueError` for an activation that is not supported.
    """
    if name == "relu":
        return Activation(name, F.relu, lambda x: (x > 0).to(x), None)
    if name == "sigmoid":
        return Activation(
            name, torch.sigmoid, lambda x: x * (1 - x), lambda x: torch.logit(x.clamp(_EDGE, 1 - _EDGE))
        )
    if name == "tanh":
        return Activation(name, torch.tanh, lambda x: 1 - x**2, lambda x: torch.atanh(x.clamp(_EDGE - 1, 1 - _EDGE)))
    if name == "leaky_relu":
        return _leaky(constants[0] if constants else 0.01)
    if name == "elu":
        return _elu(constants[0] if constants else 1.0)
    if name == "softplus":
        return _softplus(*(constants or (1.0,))[:1])
    raise ValueError(f"the activation {name} is not supported: must be one of {', '.join(KNOWN)}")


KNOWN = ("relu", "leaky_relu", "elu", "softplus", "sigmoid", "tanh")


def _leaky(slope: float) -> Activation:
    if slope <= 0:
        # As with ReLU, an output of 0 (for a negative slope, a positive output) has more than one input.
        return Activation("leaky_relu", lambda z: F.leaky_relu(z, slope), lambda x: (x > 0).to(x), None)
    return Activation(
        "leaky_relu",
        lambda z: F.leaky_relu(z, slope),
        lambda x: torch.where(x > 0, torch.ones_like(x), torch.full_like(x, slope)),
        lambda x: torch.where(x > 0, x, x / slope),
    )


def _elu(alpha: float) -> Activation:
    return Activation(
        "elu",
        lambda z: F.elu(z, alpha),
        lambda x: torch.where(x > 0, torch.ones_like(x), x + alpha),
        lambda x: torch.where(x > 0, x, torch.log1p((x / alpha).clamp(min=_EDGE - 1))),
    )


def _softplus(beta: float) -> Activation:
    def inverse(x: Tensor) -> Tensor:
        positive = x.clamp(min=_EDGE)
        return positive + torch.log(-torch.expm1(-beta * positive)) / beta

    # Above a threshold torch computes it as the identity; the difference is below 1e-8.
    return Activation(
        "softplus",
        # Torch's own implementation would overflow without its threshold.
        lambda z: torch.logaddexp(beta * z, torch.zeros_like(z)) / beta,
        lambda x: -torch.expm1(-beta * x),
        inverse,
    )
