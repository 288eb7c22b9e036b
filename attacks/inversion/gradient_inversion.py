"""Gradient inversion of many targets at once: images whose meta-gradients match the observed ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from metaleak.attacks.inversion.descent import Decay, Optimizer, Values, descent, remaining
from metaleak.attacks.inversion.image_space import Coordinates
from metaleak.attacks.inversion.matching import Layers, Loss, matching_loss, total_variation
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model, input_weight_of
from metaleak.clients.rules import Rule, own_coordinates, own_span_pays

Set = Literal["query", "support"]

_LABEL_RATE = 5.0
"""The factor on the learning rate for dummy labels, logits that must change more than pixels."""


_INDEPENDENT = 1e-3
"""The least independence of images, below which a step is computed without a basis of their span, whose derivative
does not exist for dependent images, such as copies or an empty image. It is the smallest component of an image
orthogonal to those before it, relative to the largest.
"""


@dataclass(frozen=True)
class Problem:
    """The model and rule that produced the gradients, the task's shape, and the attacked set."""

    model: Model
    rule: Rule
    ways: int
    shots: int
    queries: int
    asks: Set

    def images_of(self, position: bool = False, other: bool = False) -> int:
        """Return the number of images in the attacked set (or the `other` one), in total or at one `position`."""
        shots = (self.asks == "support") != other
        return (self.shots if shots else self.queries) * (1 if position else self.ways)

    def episode(self, asked: Tensor, other: Tensor, labels: Tensor) -> Episode:
        """Return the episode of two sets of images; `labels (M + N, ways)` are logits, empty for the true labels."""
        if len(labels):
            soft = labels.softmax(dim=1)
            attacked, others = soft[: len(asked)], soft[len(asked) :]
        else:
            attacked, others = self.labels(asked.device), self.labels(asked.device, other=True)
        if self.asks == "support":
            return Episode(asked, attacked, other, others)
        return Episode(other, others, asked, attacked)

    def labels(self, device: torch.device, other: bool = False) -> Tensor:
        """Return the true label positions of the images of the attacked set (or the `other` one), int64."""
        each = self.images_of(position=True, other=other)
        return torch.arange(self.ways, device=device).repeat_interleave(each)


@dataclass(frozen=True)
class Schedule:
    """The objective and its optimization: `fit` steps with a fixed target, then `iterations` with all unknowns free.

    `rate` is about the first step of a pixel; `decay` is its schedule in each of the two phases. `total_variation` is
    the weight of the unknown images' total variation, relative to the matching loss. `signed` uses only the signs of
    the gradient. `boxed` keeps pixels in [0, 1]; other coordinates have no constraint.
    """

    loss: Loss
    layers: Layers
    optimizer: Optimizer
    rate: float
    fit: int
    iterations: int
    decay: Decay = "linear"
    total_variation: float = 0.0
    signed: bool = False
    boxed: bool = True


@dataclass(frozen=True)
class Unknowns:
    """The optimization variables: the `asked` and `other` sets of images `(T, M, ...)`, and labels.

    Images are in the inversion's coordinates. `asked` is the attacked set; `other` is `None` if that set is known.
    `labels (T, N, ways)` are logits of the soft labels of the attacked and then the other set; `None` if the labels
    are known.
    """

    asked: Tensor
    other: Tensor | None
    labels: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """Return the variables that are not `None`, by the name of the field."""
        fields = {"asked": self.asked, "other": self.other, "labels": self.labels}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Inversion:
    """The final unknowns, and the objective `(T,)`: `fit_loss` with a fixed target, `loss` at the last step."""

    unknowns: Unknowns
    fit_loss: Tensor
    loss: Tensor


@dataclass(frozen=True)
class View:
    """One round for T inversions: the coordinates, and the weight of the round in each, `counts (T,)`, 0 or more.

    The weight is 0 if the inversion's learner did not answer in the round.
    """

    coordinates: Coordinates
    counts: Tensor


def invert(
    problem: Problem,
    views: Sequence[View],
    start: Unknowns,
    known: Tensor | None,
    slots: Tensor | None,
    schedule: Schedule,
    tick: Callable[[], None],
) -> Inversion:
    """Return the unknowns that make the rule's meta-gradients match the observed ones, found from `start`.

    One set must fit all of the `views`, each at its round's parameters: the weighted mean of their losses is
    minimized. Several views must have the same coordinates, pixels. `known (T, M, ...)` is the other set if the
    adversary knows it; `slots (T,)` are the indices of the targets in the attacked set, which are fixed in the first
    phase (`None`: no image is). `tick` is called after every step. The computation is deterministic.
    """
    coordinates = views[0].coordinates
    step = _joint_stepper(problem, views, known, schedule)
    values = start.tensors()
    # Scaled such that a step in K coordinates changes an image as much as the step in all of its pixels.
    rate = schedule.rate * math.sqrt(math.prod(coordinates.input_shape) / math.prod(coordinates.shape))
    rates = {"asked": rate, "other": rate, "labels": schedule.rate * _LABEL_RATE}
    full = {name: torch.full((1,) * value.ndim, rates[name], device=value.device) for name, value in values.items()}
    held = {**full, "asked": full["asked"] * _free(start.asked, slots)}
    boxed = [name for name in values if schedule.boxed and coordinates.boxed and name != "labels"]

    fit_loss = loss = torch.full(start.asked.shape[:1], torch.nan, device=start.asked.device)
    # One optimizer for both phases: its moments include the fixed target's gradients, so that a released target moves
    # by its gradient relative to earlier ones, and not by a full first step of Adam.
    move = descent(schedule.optimizer)
    for phase, steps in enumerate((schedule.fit, schedule.iterations)):
        if phase == 1 and schedule.fit and schedule.optimizer == "lbfgs":
            # Its curvature is that of the values that were free; it must also restart from its last accepted point.
            values, _ = move.settled(values, loss)
            move = descent(schedule.optimizer)
        for index in range(steps):
            gradients, loss = step(values)
            if phase == 1 and index == 0:
                fit_loss = loss
            if schedule.signed:
                gradients = {name: gradient.sign() for name, gradient in gradients.items()}
            left = remaining(schedule.decay, index, steps)
            now = {name: value * left for name, value in (full if phase else held).items()}
            values = move.advance(values, gradients, loss, now)
            values |= {name: values[name].clamp(0.0, 1.0) for name in boxed}
            tick()
    values, loss = move.settled(values, loss)
    return Inversion(Unknowns(values["asked"], values.get("other"), values.get("labels")), fit_loss, loss)


def _free(asked: Tensor, slots: Tensor | None) -> Tensor:
    """Return 0 for the targets among the images of `asked (T, M, ...)` and 1 for the rest, `(T, M, 1, ...)`."""
    free = torch.ones(asked.shape[:2], device=asked.device)
    if slots is not None:
        free.scatter_(1, slots[:, None], 0.0)
    return free.reshape(*free.shape, *(1,) * (asked.ndim - 2))


def _joint_stepper(
    problem: Problem, views: Sequence[View], known: Tensor | None, schedule: Schedule
) -> Callable[[Values], tuple[Values, Tensor]]:
    """Return the function from unknowns to gradients and objectives, weighted means over views."""
    steps = [_stepper(problem, view.coordinates, known, schedule) for view in views]
    if len(views) == 1:
        return steps[0]
    counts = torch.stack([view.counts for view in views])
    weights = counts / counts.sum(dim=0).clamp(min=1e-30)

    def evaluate(values: Values) -> tuple[Values, Tensor]:
        # One round after the other, so that only one computation graph is in memory.
        gradients, losses = {name: torch.zeros_like(value) for name, value in values.items()}, weights.new_zeros(())
        for step, weight in zip(steps, weights, strict=True):
            found, loss = step(values)
            losses = losses + weight * loss
            for name, gradient in found.items():
                gradients[name] += weight.reshape(-1, *(1,) * (gradient.ndim - 1)) * gradient
        return gradients, losses

    return evaluate


def _stepper(
    problem: Problem, coordinates: Coordinates, known: Tensor | None, schedule: Schedule
) -> Callable[[Values], tuple[Values, Tensor]]:
    """Return the function from unknowns `(T, ...)` to the objectives' gradients and the objectives `(T,)`."""
    first, model, rule = coordinates.first, problem.model, problem.rule
    shared = {name: value for name, value in coordinates.parameters.items() if name != first}
    own = {name: value for name, value in coordinates.parameters.items() if name == first}
    given = {} if known is None else {"known": known}
    given |= {} if coordinates.weights is None else {"weights": coordinates.weights}
    no_labels = torch.empty(0, problem.ways, device=next(iter(coordinates.gradients.values())).device)
    images = problem.images_of() + problem.images_of(other=True)
    # In pixels, which total variation needs, the first layer can still be computed in the span of the dummies.
    pays = first is None and schedule.loss == "cosine" and own_span_pays(model, rule, shared, images)
    in_dummy_span = input_weight_of(model) if pays else None

    def objective(
        values: Values,
        given: Values,
        own: Parameters,
        observed: Parameters,
        squares: Parameters,
        in_dummy_span: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        other = given["known"] if "known" in given else values["other"]
        episode = problem.episode(values["asked"], other, values.get("labels", no_labels))
        parameters, independent = {**shared, **own}, torch.ones((), device=other.device)
        if in_dummy_span is not None:
            basis, episode = own_coordinates(episode)
            parameters, observed = (
                {**tensors, in_dummy_span: tensors[in_dummy_span] @ basis} for tensors in (parameters, observed)
            )
            lengths = torch.cat([episode.support_inputs, episode.query_inputs]).diagonal().abs()
            independent = (lengths.min() / lengths.max()).detach()
        made, _ = rule.meta_gradient(model, parameters, episode)
        if first is not None:
            made = {**made, first: made[first] * given["weights"]}
        loss = matching_loss(made, observed, schedule.loss, schedule.layers, squares)
        if schedule.total_variation:
            free = torch.cat([value for name, value in values.items() if name != "labels"])
            loss = loss + schedule.total_variation * total_variation(free)
        return loss, independent

    plain = vmap(grad_and_value(objective, has_aux=True))
    in_span = vmap(grad_and_value(partial(objective, in_dummy_span=in_dummy_span), has_aux=True))
    squares = {name: value.flatten(1).square().sum(dim=1) for name, value in coordinates.gradients.items()}

    def evaluate(values: Values) -> tuple[Values, Tensor]:
        asked = values, given, own, coordinates.gradients, squares
        gradients, (loss, independent) = (plain if in_dummy_span is None else in_span)(*asked)
        if not bool((independent > _INDEPENDENT).all()):
            gradients, (loss, _) = plain(*asked)
        return {name: value.detach() for name, value in gradients.items()}, loss.detach()

    return evaluate
