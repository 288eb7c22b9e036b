"""Limited-memory BFGS for many independent problems at once (Liu & Nocedal 1989).

`torch.optim.LBFGS` has one history and one step length for all parameters, so the solutions of a batch of problems
would depend on each other. Here each problem has its own, and none waits for another: in each step, one evaluation of
all problems, some accept their trial point and others shorten their step.
"""

import torch
from torch import Tensor

_ARMIJO = 1e-4
"""The fraction of the decrease predicted by the slope that an accepted trial must reach (Armijo)."""

_CURVATURE = 1e-10
"""Pairs of step and gradient change whose cosine is below this are not used as curvature."""

_TRIALS = 10
"""The number of rejected trials after which the history is dropped and descent restarts from the gradient."""


class LBFGS:
    """A `Descent` by L-BFGS with backtracking, each target with its own history and step length.

    All unknowns of a target form one vector. With an empty history the first trial is a step of steepest descent that
    changes each value by at most its rate; later trials start with the full quasi-Newton step. A trial may be changed
    by the caller, for example clipped to a box. Trials with a loss that is not finite are rejected.
    """

    def __init__(self, history: int = 10) -> None:
        self._history = history
        self._point = self._gradient = self._loss = torch.empty(0)
        # Ring buffers (history, T, D); `_count (T,)` pairs are in use, the newest is before `_next (T,)`.
        self._steps = self._changes = self._products = torch.empty(0)
        self._count = self._next = self._refused = torch.empty(0, dtype=torch.int64)
        self._length = torch.empty(0)

    def advance(
        self, values: dict[str, Tensor], gradients: dict[str, Tensor], losses: Tensor, rates: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the next trial points, from the gradients and the losses `(T,)` at the last ones, `values`."""
        rate = torch.cat([rates[name].expand_as(value).flatten(1) for name, value in values.items()], dim=1)
        point = _flat(values)
        gradient = _flat({name: gradients[name] for name in values}) * (rate != 0)
        if not len(self._point):
            self._begin(point, gradient, losses)
        else:
            self._judge(point, gradient, losses)
        direction = self._direction()
        # Without a history, no value changes by more than its rate.
        steepest = self._count == 0
        shortest = torch.where(direction != 0, rate / direction.abs(), torch.inf).amin(dim=1)
        first = torch.where(shortest.isfinite(), shortest, torch.zeros_like(shortest))
        length = torch.where(steepest, first, torch.ones_like(first)) * self._length
        return _named(self._point + length[:, None] * direction, values)

    def settled(self, values: dict[str, Tensor], losses: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the accepted points, in the shapes of `values`, and their losses `(T,)`.

        Before the first evaluation both arguments are returned unchanged.
        """
        return (_named(self._point, values), self._loss) if len(self._point) else (values, losses)

    def _begin(self, point: Tensor, gradient: Tensor, losses: Tensor) -> None:
        self._point, self._gradient, self._loss = point.clone(), gradient, losses
        self._steps = point.new_zeros(self._history, *point.shape)
        self._changes = torch.zeros_like(self._steps)
        self._products = point.new_ones(self._history, len(point))
        self._count = self._next = self._refused = torch.zeros(len(point), dtype=torch.int64, device=point.device)
        self._length = torch.ones_like(losses)

    def _judge(self, point: Tensor, gradient: Tensor, losses: Tensor) -> None:
        """Accept trials with a sufficient decrease, store their curvature, and shorten the step of the others."""
        step, change = point - self._point, gradient - self._gradient
        slope = (self._gradient * step).sum(dim=1).clamp(max=0.0)
        accepted = losses <= self._loss + _ARMIJO * slope
        product = (step * change).sum(dim=1)
        curved = accepted & (product > _CURVATURE * step.norm(dim=1) * change.norm(dim=1))
        here = curved.nonzero().flatten()
        slot = self._next[here]
        self._steps[slot, here], self._changes[slot, here] = step[here], change[here]
        self._products[slot, here] = product[here]
        self._next = torch.where(curved, (self._next + 1) % self._history, self._next)
        self._count = torch.where(curved, (self._count + 1).clamp(max=self._history), self._count)

        # The minimum of the parabola through both losses and the slope, as a fraction of the last step.
        lowest = -slope / (2.0 * (losses - self._loss - slope))
        shorter = self._length * torch.nan_to_num(lowest, nan=0.1).clamp(0.1, 0.5)
        self._length = torch.where(accepted, torch.ones_like(shorter), shorter)
        self._refused = torch.where(accepted, 0, self._refused + 1)
        lost = (self._refused > 0) & (self._refused % _TRIALS == 0)
        self._count = torch.where(lost, 0, self._count)

        self._point = torch.where(accepted[:, None], point, self._point)
        self._gradient = torch.where(accepted[:, None], gradient, self._gradient)
        self._loss = torch.where(accepted, losses, self._loss)

    def _direction(self) -> Tensor:
        """Return the direction of the two-loop recursion `(T, D)`, that of steepest descent without a history."""
        targets = torch.arange(len(self._point), device=self._point.device)
        found = -self._gradient
        # By age, since the targets' newest pairs are at different places in their ring buffers.
        ages = [(self._next - 1 - age) % self._history for age in range(int(self._count.max()))]
        shares = []
        for age, slot in enumerate(ages):
            share = (self._steps[slot, targets] * found).sum(dim=1) / self._products[slot, targets]
            share = torch.where(age < self._count, share, torch.zeros_like(share))
            found = found - share[:, None] * self._changes[slot, targets]
            shares.append(share)
        if ages:
            change = self._changes[ages[0], targets].square().sum(dim=1)
            scale = self._products[ages[0], targets] / change
            found = found * torch.where(self._count > 0, scale, torch.ones_like(scale))[:, None]
        for age, slot in reversed(list(enumerate(ages))):
            back = (self._changes[slot, targets] * found).sum(dim=1) / self._products[slot, targets]
            part = torch.where(age < self._count, shares[age] - back, torch.zeros_like(back))
            found = found + part[:, None] * self._steps[slot, targets]
        return found


def _flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten(1) for value in values.values()], dim=1)


def _named(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = torch.split(flat, [value[0].numel() for value in like.values()], dim=1)
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
