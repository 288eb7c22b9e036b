"""Optimizers for the unknowns of many targets at once: Adam, heavy ball, L-BFGS."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from metaleak.attacks.inversion.lbfgs import LBFGS

Optimizer = Literal["adam", "momentum", "lbfgs"]
Decay = Literal["linear", "steps", "none"]

Values = dict[str, Tensor]
"""Unknowns by name, each `(T, ...)`; also their gradients, and rates that broadcast to them."""


class Descent(Protocol):
    """An optimizer of many independent problems, one per target, with separate state for each."""

    def advance(self, values: Values, gradients: Values, losses: Tensor, rates: Values) -> Values:
        """Return the next point, from gradients and losses `(T,)` at `values`; a rate of 0 keeps a value fixed."""
        ...

    def settled(self, values: Values, losses: Tensor) -> tuple[Values, Tensor]:
        """Return the final point, in place of `values`, which would be evaluated next, and its losses.

        `losses (T,)` are those of the last evaluation.
        """
        ...


class Adam:
    """Adam (Kingma & Ba 2015) with bias correction; its moments include the gradients of fixed values."""

    def __init__(self, first: float = 0.9, second: float = 0.999) -> None:
        self._decays = (first, second)
        self._means: Values = {}
        self._squares: Values = {}
        self._steps = 0

    def advance(self, values: Values, gradients: Values, losses: Tensor, rates: Values) -> Values:
        """Return `values` minus the rates times the mean gradients divided by their root mean squares."""
        first, second = self._decays
        self._steps += 1
        moved = {}
        for name, gradient in gradients.items():
            mean = self._means.setdefault(name, torch.zeros_like(gradient))
            square = self._squares.setdefault(name, torch.zeros_like(gradient))
            mean.mul_(first).add_(gradient, alpha=1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            root = (square / (1 - second**self._steps)).sqrt() + 1e-12
            moved[name] = values[name] - rates[name] * (mean / (1 - first**self._steps) / root)
        return moved

    def settled(self, values: Values, losses: Tensor) -> tuple[Values, Tensor]:
        """Return both as they are."""
        return values, losses


class Momentum:
    """Heavy-ball descent on gradients scaled to root mean square 1 for each target."""

    def __init__(self, decay: float = 0.9) -> None:
        self._decay = decay
        self._means: Values = {}

    def advance(self, values: Values, gradients: Values, losses: Tensor, rates: Values) -> Values:
        """Return `values` minus the rates times the running mean of scaled gradients."""
        moved = {}
        for name, gradient in gradients.items():
            size = gradient.flatten(1).square().mean(dim=1).sqrt() + 1e-12
            unit = gradient / size.reshape(-1, *(1,) * (gradient.ndim - 1))
            before = self._means.get(name, torch.zeros_like(unit))
            self._means[name] = self._decay * before + (1 - self._decay) * unit
            moved[name] = values[name] - rates[name] * self._means[name]
        return moved

    def settled(self, values: Values, losses: Tensor) -> tuple[Values, Tensor]:
        """Return both as they are."""
        return values, losses


def descent(optimizer: Optimizer) -> Descent:
    """Return a fresh descent of this kind."""
    if optimizer == "lbfgs":
        return LBFGS()
    return Adam() if optimizer == "adam" else Momentum()


def remaining(decay: Decay, step: int, steps: int) -> float:
    """Return the factor in (0, 1] on the rate in `step`, counted from 0, of `steps`.

    `linear` falls toward 0. `steps` divides by ten after 3/8, 5/8 and 7/8 of the steps (Geiping et al. 2020).
    """
    if decay == "linear":
        return 1.0 - step / steps
    if decay == "steps":
        return 0.1 ** sum(8 * step >= eighths * steps for eighths in (3, 5, 7))
    return 1.0
