"""Gradient inversion of many targets at once: images that would have caused the observed meta-gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from metaleak.attacks.coordinates import Coordinates
from metaleak.attacks.matching import Layers, Loss, matching_loss
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules import Rule

Set = Literal["query", "support"]
Optimiser = Literal["adam", "momentum"]

_LABEL_RATE = 5.0
"""Dummy labels are logits, which have further to go than pixels: their rate is this times the images'."""


@dataclass(frozen=True)
class Problem:
    """What is inverted: the model and rule that made the gradients, the task's shape, and the set asked about."""

    model: Model
    rule: Rule
    ways: int
    shots: int
    queries: int
    asks: Set

    def images_of(self, position: bool = False, other: bool = False) -> int:
        """Return how many images the asked set (or the `other` one) has, all told or at one `position`."""
        shots = (self.asks == "support") != other
        return (self.shots if shots else self.queries) * (1 if position else self.ways)

    def episode(self, asked: Tensor, other: Tensor, labels: Tensor) -> Episode:
        """Return the episode of two sets of images; `labels` are their logits `(M + N, ways)`, empty for the true."""
        if len(labels):
            soft = labels.softmax(dim=1)
            mine, theirs = soft[: len(asked)], soft[len(asked) :]
        else:
            mine, theirs = self.labels(), self.labels(other=True)
        if self.asks == "support":
            return Episode(asked, mine, other, theirs)
        return Episode(other, theirs, asked, mine)

    def labels(self, other: bool = False) -> Tensor:
        """Return the true positions of the asked set's images (or the `other` one's), int64."""
        return torch.arange(self.ways).repeat_interleave(self.images_of(position=True, other=other))


@dataclass(frozen=True)
class Schedule:
    """How the optimiser moves: `fit` steps with the target held, then `iterations` with everything free.

    `rate` is about the step of a pixel; it falls linearly to 0 over each of the two phases.
    """

    loss: Loss
    layers: Layers
    optimiser: Optimiser
    rate: float
    fit: int
    iterations: int


@dataclass(frozen=True)
class Unknowns:
    """What is optimised: `asked` and `other (T, M, ...)` images in the inversion's coordinates, `labels` logits.

    `other` is `None` when that set is known. `labels (T, N, ways)` are logits of the soft labels of the asked set
    and then the other one; `None` when the labels are known.
    """

    asked: Tensor
    other: Tensor | None
    labels: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """Return those that are there, by the name of the field."""
        fields = {"asked": self.asked, "other": self.other, "labels": self.labels}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Inversion:
    """Where the unknowns ended, and the matching loss `(T,)` before the target was released and at the last step."""

    unknowns: Unknowns
    fit_loss: Tensor
    loss: Tensor


Move = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def invert(
    problem: Problem,
    coordinates: Coordinates,
    start: Unknowns,
    known: Tensor | None,
    slots: Tensor,
    schedule: Schedule,
    tick: Callable[[], None],
) -> Inversion:
    """Return the unknowns that make the rule's meta-gradient match the observed one, found from `start`.

    `known (T, M, ...)` is the other set where the adversary has it; `slots (T,)` say which image of the asked set
    is the target, which stays put in the first phase. `tick` is called after every step. Nothing here is random.
    """
    step = _stepper(problem, coordinates, known, schedule)
    values = start.tensors()
    held = torch.ones(start.asked.shape[:2]).scatter_(1, slots[:, None], 0.0)
    held = held.reshape(*held.shape, *(1,) * (start.asked.ndim - 2))
    # A step in K coordinates moves an image as far as the same step in all of its pixels.
    rate = schedule.rate * math.sqrt(math.prod(coordinates.image_shape) / math.prod(coordinates.shape))
    rates = {"asked": rate, "other": rate, "labels": schedule.rate * _LABEL_RATE}

    fit_loss = loss = torch.full(slots.shape, torch.nan)
    # One optimiser for both phases: it has seen the held target's gradients too, so that a released target moves by
    # how strongly it is pulled now beside how strongly it was at first, and not by a full first step of Adam's.
    move = _adam() if schedule.optimiser == "adam" else _momentum()
    for phase, steps in enumerate((schedule.fit, schedule.iterations)):
        for index in range(steps):
            gradients, loss = step(values)
            moves = move(gradients)
            if phase == 0:
                moves["asked"] = moves["asked"] * held
            elif index == 0:
                fit_loss = loss
            left = 1.0 - index / steps
            values = {name: value - rates[name] * left * moves[name] for name, value in values.items()}
            if coordinates.boxed:
                values |= {name: value.clamp(0.0, 1.0) for name, value in values.items() if name != "labels"}
            tick()
    return Inversion(Unknowns(values["asked"], values.get("other"), values.get("labels")), fit_loss, loss)


def _stepper(
    problem: Problem, coordinates: Coordinates, known: Tensor | None, schedule: Schedule
) -> Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], Tensor]]:
    """Return the function from the unknowns `(T, ...)` to the matching loss's gradients and the losses `(T,)`."""
    first = coordinates.first
    shared = {name: value for name, value in coordinates.parameters.items() if name != first}
    own = {name: value for name, value in coordinates.parameters.items() if name == first}
    given = {} if known is None else {"known": known}
    given |= {} if coordinates.weights is None else {"weights": coordinates.weights}
    no_labels = torch.empty(0, problem.ways)

    def objective(
        values: dict[str, Tensor], given: dict[str, Tensor], own: Parameters, observed: Parameters
    ) -> Tensor:
        other = given["known"] if "known" in given else values["other"]
        episode = problem.episode(values["asked"], other, values.get("labels", no_labels))
        made, _ = problem.rule.meta_gradient(problem.model, {**shared, **own}, episode)
        if first is not None:
            made = {**made, first: made[first] * given["weights"]}
        return matching_loss(made, observed, schedule.loss, schedule.layers)

    step = vmap(grad_and_value(objective))

    def evaluate(values: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        gradients, loss = step(values, given, own, coordinates.gradients)
        return {name: value.detach() for name, value in gradients.items()}, loss.detach()

    return evaluate


def _adam(first: float = 0.9, second: float = 0.999) -> Move:
    """Return Adam's direction (Kingma & Ba 2015), with bias correction, as a function of successive gradients."""
    means: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    steps = 0

    def move(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        moves = {}
        for name, gradient in gradients.items():
            mean = means.setdefault(name, torch.zeros_like(gradient))
            square = squares.setdefault(name, torch.zeros_like(gradient))
            mean.mul_(first).add_(gradient, alpha=1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            root = (square / (1 - second**steps)).sqrt() + 1e-12
            moves[name] = mean / (1 - first**steps) / root
        return moves

    return move


def _momentum(decay: float = 0.9) -> Move:
    """Return heavy-ball descent on the gradient brought to root-mean-square 1 in each target's images."""
    means: dict[str, Tensor] = {}

    def move(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, gradient in gradients.items():
            size = gradient.flatten(1).square().mean(dim=1).sqrt() + 1e-12
            unit = gradient / size.reshape(-1, *(1,) * (gradient.ndim - 1))
            means[name] = decay * means.get(name, torch.zeros_like(unit)) + (1 - decay) * unit
        return dict(means)

    return move
