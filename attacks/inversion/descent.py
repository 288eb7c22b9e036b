"""How unknowns of many targets move from one evaluation to the next: Adam, heavy ball, L-BFGS."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from metaleak.attacks.inversion.lbfgs import LBFGS

Optimizer = Literal["adam", "momentum", "lbfgs"]
Decay = Literal["linear", "steps", "none"]

Values = dict[str, Tensor]
"""Unknowns by name, each `(T, ...)`; also their gradients, and rates that broadcast to them."""


class Descent(Protocol):
    """A rule for the next point; every target is a problem of its own and the state is kept for each."""

    def advance(self, values: Values, gradients: Values, losses: Tensor, rates: Values) -> Values:
        """Return the next point, from the gradients and the losses `(T,)` at `values`; a rate of 0 holds a value."""
        ...

    def settled(self, values: Values, losses: Tensor) -> tuple[Values, Tensor]:
        """Return where to end instead of at `values`, the point that would be evaluated next, and the losses there.

        `losses (T,)` are those of the last evaluation.
        """
        ...


class Adam:
    """Adam (Kingma & Ba 2015) with bias correction; it sees the gradients of held values too."""

    def __init__(self, first: float = 0.9, second: float = 0.999) -> None:
        self._decays = (first, second)
        self._means: Values = {}
        self._squares: Values = {}
        self._steps = 0

    def advance(self, values: Values, gradients: Values, losses: Tensor, rates: Values) -> Values:
        """Return `values` less the rates times the mean gradients over their root mean squares."""
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
    """Heavy-ball descent on the gradient brought to root-mean-square 1 in each target's images."""

    def __init__(self, decay: float = 0.9) -> None:
        self._decay = decay
        self._means: Values = {}

    def advance(self, values: Values, gradients: Values, losses: Tensor, rates: Values) -> Values:
        """Return `values` less the rates times the running mean of unit gradients."""
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
    """Return the factor in (0, 1] of the rate in `step`, counted from 0, of `steps`.

    `linear` falls toward 0. `steps` divides by ten after 3/8, 5/8 and 7/8 of the steps (Geiping et al. 2020).
    """
    if decay == "linear":
        return 1.0 - step / steps
    if decay == "steps":
        return 0.1 ** sum(8 * step >= eighths * steps for eighths in (3, 5, 7))
    return 1.0
