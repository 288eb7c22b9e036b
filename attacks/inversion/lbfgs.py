"""Limited-memory BFGS for many independent problems at once (Liu & Nocedal 1989).

`torch.optim.LBFGS` has one history and one step length for everything it is given, so a batch of problems in it is
one problem whose answers depend on one another. Here each problem has its own, and none waits for another: one
evaluation of all problems is one step, in which some accept their trial point and others shorten their step.
"""

import torch
from torch import Tensor

_ARMIJO = 1e-4
"""The fraction of the decrease predicted by the slope that a trial must reach to be accepted (Armijo)."""

_CURVATURE = 1e-10
"""Pairs of step and gradient change whose cosine is below this are not used as curvature."""

_TRIALS = 10
"""Refused trials after which the history is dropped and descent restarts from the gradient."""


class LBFGS:
    """A `Descent` by L-BFGS with backtracking, each target with its own history and step length.

    The unknowns of a target are one vector, whatever their names. Where the history is empty the first trial moves
    each value by its rate at most, along the steepest descent; later trials begin at the full quasi-Newton step. A
    trial that was changed by the caller (into a box) is taken as what it has become. Losses that are not finite
    are refused like those that do not fall.
    """

    def __init__(self, history: int = 10) -> None:
        self._history = history
        self._point = self._gradient = self._loss = torch.empty(0)
        # Ring buffers (history, T, D); `_count (T,)` pairs are in use, the newest stands before `_next (T,)`.
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
        # Without a history: no value moves further than its rate.
        steepest = self._count == 0
        shortest = torch.where(direction != 0, rate / direction.abs(), torch.inf).amin(dim=1)
        first = torch.where(shortest.isfinite(), shortest, torch.zeros_like(shortest))
        length = torch.where(steepest, first, torch.ones_like(first)) * self._length
        return _named(self._point + length[:, None] * direction, values)

    def settled(self, values: dict[str, Tensor], losses: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the accepted points, in the shapes of `values`, and their losses `(T,)`.

        Both as they are given before the first evaluation.
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
        """Accept the trials that bring enough, remember their curvature, and shorten the others' step."""
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

        # The parabola through both losses and the slope has its lowest point here, as a part of the last step.
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
        """Return the two-loop recursion's direction `(T, D)`, the steepest descent where there is no history."""
        targets = torch.arange(len(self._point), device=self._point.device)
        found = -self._gradient
        # Age by age: the targets' newest pairs stand at different places of their rings.
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
