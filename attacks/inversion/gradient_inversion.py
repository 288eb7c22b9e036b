"""Gradient inversion of many targets at once: images that would have caused the observed meta-gradients."""

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
"""Dummy labels are logits, which have further to go than pixels: their rate is this times the images'."""


_INDEPENDENT = 1e-3
"""The derivative of a basis exists for independent images only: where one's part off those before it is below this
share of the largest, as with copies or an empty image, the step is computed plainly.
"""


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
            mine, theirs = self.labels(asked.device), self.labels(asked.device, other=True)
        if self.asks == "support":
            return Episode(asked, mine, other, theirs)
        return Episode(other, theirs, asked, mine)

    def labels(self, device: torch.device, other: bool = False) -> Tensor:
        """Return the true positions of the asked set's images (or the `other` one's), int64."""
        each = self.images_of(position=True, other=other)
        return torch.arange(self.ways, device=device).repeat_interleave(each)


@dataclass(frozen=True)
class Schedule:
    """What is minimized and how: `fit` steps with the target held, then `iterations` with everything free.

    `rate` is about the step of a pixel; `decay` says how it falls over each of the two phases. `total_variation` is
    the weight of the unknown images' total variation beside the matching loss. `signed` descends along the signs of
    the gradient. `boxed` keeps pixels in [0, 1]; other coordinates know no box.
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
    """What is optimized: `asked` and `other (T, M, ...)` images in the inversion's coordinates, `labels` logits.

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
    """Where the unknowns ended, and the objective `(T,)` before the target was released and at the last step."""

    unknowns: Unknowns
    fit_loss: Tensor
    loss: Tensor


@dataclass(frozen=True)
class View:
    """One round as T inversions see it: what they are computed in, and how much it `counts (T,)`, 0 or more.

    A round that does not count is one in which the inversion's learner did not answer.
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

    One set explains all of the `views`, each at the parameters sent in it: what is minimized is the weighted mean of
    their losses. Several are seen in the same coordinates, pixels. `known (T, M, ...)` is the other set where the
    adversary has it; `slots (T,)` say which image of the asked set is the target, which stays put in the first phase;
    without them nothing does. `tick` is called after every step. Nothing here is random.
    """
    coordinates = views[0].coordinates
    step = _joint_stepper(problem, views, known, schedule)
    values = start.tensors()
    # A step in K coordinates moves an image as far as the same step in all of its pixels.
    rate = schedule.rate * math.sqrt(math.prod(coordinates.input_shape) / math.prod(coordinates.shape))
    rates = {"asked": rate, "other": rate, "labels": schedule.rate * _LABEL_RATE}
    full = {name: torch.full((1,) * value.ndim, rates[name], device=value.device) for name, value in values.items()}
    held = {**full, "asked": full["asked"] * _free(start.asked, slots)}
    boxed = [name for name in values if schedule.boxed and coordinates.boxed and name != "labels"]

    fit_loss = loss = torch.full(start.asked.shape[:1], torch.nan, device=start.asked.device)
    # One optimizer for both phases: it has seen the held target's gradients too, so that a released target moves by
    # how strongly it is pulled now beside how strongly it was at first, and not by a full first step of Adam's.
    move = descent(schedule.optimizer)
    for phase, steps in enumerate((schedule.fit, schedule.iterations)):
        if phase == 1 and schedule.fit and schedule.optimizer == "lbfgs":
            # Its curvature is that of the values that were free; the losses of refused trials are nobody's start.
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
    """Return the function from the unknowns to the weighted means over views of gradients and objectives."""
    steps = [_stepper(problem, view.coordinates, known, schedule) for view in views]
    if len(views) == 1:
        return steps[0]
    counts = torch.stack([view.counts for view in views])
    weights = counts / counts.sum(dim=0).clamp(min=1e-30)

    def evaluate(values: Values) -> tuple[Values, Tensor]:
        # One after the other: only one round's graph is in memory.
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
    """Return the function from the unknowns `(T, ...)` to the objective's gradients and the objectives `(T,)`."""
    first, model, rule = coordinates.first, problem.model, problem.rule
    shared = {name: value for name, value in coordinates.parameters.items() if name != first}
    own = {name: value for name, value in coordinates.parameters.items() if name == first}
    given = {} if known is None else {"known": known}
    given |= {} if coordinates.weights is None else {"weights": coordinates.weights}
    no_labels = torch.empty(0, problem.ways, device=next(iter(coordinates.gradients.values())).device)
    images = problem.images_of() + problem.images_of(other=True)
    # In pixels, which the total variation needs, the first layer may still be met in the span of the dummies alone.
    pays = first is None and schedule.loss == "cosine" and own_span_pays(model, rule, shared, images)
    met_in_span = input_weight_of(model) if pays else None

    def objective(
        values: Values,
        given: Values,
        own: Parameters,
        observed: Parameters,
        squares: Parameters,
        met_in_span: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        other = given["known"] if "known" in given else values["other"]
        episode = problem.episode(values["asked"], other, values.get("labels", no_labels))
        parameters, independent = {**shared, **own}, torch.ones((), device=other.device)
        if met_in_span is not None:
            basis, episode = own_coordinates(episode)
            parameters, observed = (
                {**tensors, met_in_span: tensors[met_in_span] @ basis} for tensors in (parameters, observed)
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
    in_span = vmap(grad_and_value(partial(objective, met_in_span=met_in_span), has_aux=True))
    squares = {name: value.flatten(1).square().sum(dim=1) for name, value in coordinates.gradients.items()}

    def evaluate(values: Values) -> tuple[Values, Tensor]:
        asked = values, given, own, coordinates.gradients, squares
        gradients, (loss, independent) = (plain if met_in_span is None else in_span)(*asked)
        if not bool((independent > _INDEPENDENT).all()):
            gradients, (loss, _) = plain(*asked)
        return {name: value.detach() for name, value in gradients.items()}, loss.detach()

    return evaluate
