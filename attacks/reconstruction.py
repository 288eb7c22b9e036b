"""The paper's query and support attacks: meta-gradient matching that starts at the target image.

Rafiei, Maheri, Rabiee 2024 (arXiv 2406.00249). The target is put into a dummy episode, the dummy is optimised until
its meta-gradient matches the learner's, and the target is a member if it stayed what it was. The paper's loss,
optimiser and schedule could not be read; the fields below are ours, with defaults found on MNIST and Fashion-MNIST.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.func import vmap

from metaleak.attacks.coordinates import Coordinates, dense_first_layer, pixels, row_space, seen_by_dense_layer
from metaleak.attacks.inversion import Inversion, Optimiser, Problem, Schedule, Set, Unknowns, invert
from metaleak.attacks.matching import Layers, Loss
from metaleak.attacks.observation import Answers, Knowledge, Observation, Progress, Targets
from metaleak.attacks.starts import start_blurred, start_from_known, start_in_row_space
from metaleak.clients.episode import Episode, Parameters

_TICKS = 10
"""Steps between two calls of a progress callback."""


class ReconstructionAttack(BaseModel):
    """Was this image in the learner's set that the attack `asks` about?

    `knows`: `labels` (of every image), `other` (also the images of the set not asked about, which the observation
    must carry), or `nothing` (soft labels are optimised too).

    `decision`: `distance` scores by how little the target moved, in L2 over pixels. `outside` counts only movement
    out of the row space of the observed first-layer gradient, where a member lies and a non-member does not; the
    same as `distance` for models whose first layer is not dense. `class` is the paper's rule: 1 where the adapted
    model gives prior and reconstruction the same class, else 0.

    The first `fit` steps hold the target and move the rest, `iterations` more move everything, at a `rate` that is
    about a pixel's first step. Images of models whose first layer is not dense stay in [0, 1] throughout.
    `whitening` evens out how strongly the directions of a dense first layer's gradient count, see
    `seen_by_dense_layer`. `chunk` targets are computed at a time: about 3 MB each for the default MLP.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: Set = "query"
    knows: Literal["labels", "other", "nothing"] = "labels"
    decision: Literal["outside", "distance", "class"] = "outside"
    loss: Loss = "cosine"
    layers: Layers = "joint"
    optimiser: Optimiser = "adam"
    rate: Annotated[float, Field(gt=0, le=10)] = 0.05
    fit: Annotated[int, Field(ge=0, le=100_000)] = 100
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 100
    whitening: Annotated[float, Field(ge=0, le=1)] = 0.5
    chunk: Annotated[int, Field(ge=1, le=100_000)] = 128

    @property
    def assumes(self) -> frozenset[Knowledge]:
        """What `knows` says."""
        if self.knows == "nothing":
            return frozenset()
        return frozenset({"labels", "other set"} if self.knows == "other" else {"labels"})

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return scores, reconstructions and the statistics `distance`, `outside`, `class_kept`, `fit_loss`, `loss`.

        With a dense first layer also `outside_prior`, a baseline without a reconstruction: the part, in [0, 1], of
        the target's own norm that lies out of the row space of the observed first-layer gradient.
        A target's answer depends on the seed, its learner and itself, not on the targets beside it. Raises
        `ValueError` when the shapes do not fit, or when the observation lacks what `knows` says is known.
        """
        problem = Problem(
            observation.model, observation.rule, observation.ways, observation.shots, observation.queries, self.asks
        )
        known = self._known(observation, problem)
        _check(observation, targets, known, problem)
        steps = self.fit + self.iterations
        total = len(targets.rows) * steps
        reconstructions = torch.empty_like(targets.images)
        statistics: dict[str, Tensor] = {}
        for begin in range(0, len(targets.rows), self.chunk):
            some = slice(begin, begin + self.chunk)
            part = Targets(targets.images[some], targets.rows[some], targets.positions[some])
            tick = _ticker(progress, begin * steps, len(part.rows), total)
            made, found = self._invert(observation, problem, part, known, seed, tick)
            reconstructions[some] = made
            for name, values in found.items():
                statistics.setdefault(name, torch.empty(len(targets.rows)))[some] = values
        if progress is not None:
            progress(total, total)
        if not len(targets.rows):
            return Answers(torch.empty(0), reconstructions)
        score = statistics["class_kept"] if self.decision == "class" else -statistics[self.decision]
        return Answers(score, reconstructions, statistics)

    def _known(self, observation: Observation, problem: Problem) -> Tensor | None:
        if self.knows != "other":
            return None
        name = "known_query" if problem.asks == "support" else "known_support"
        known: Tensor | None = getattr(observation, name)
        if known is None:
            raise ValueError(f"knows 'other' needs the observation's {name}, which is None")
        return known

    def _invert(
        self,
        observation: Observation,
        problem: Problem,
        targets: Targets,
        known: Tensor | None,
        seed: int,
        tick: Callable[[], None],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return reconstructions `(T, C, H, W)` and statistics for the targets of one chunk."""
        images = targets.images.float()
        rows = targets.rows
        gradients = {name: value[rows] for name, value in observation.gradients.items()}
        given = None if known is None else known[rows].float()
        counts = (problem.images_of(), 0 if given is not None else problem.images_of(other=True))

        first = dense_first_layer(observation.model)
        space = (
            None
            if first is None
            else row_space(gradients[first], problem.images_of() + problem.images_of(other=True))
        )
        if given is not None:
            positions = problem.labels() * problem.images_of(position=True, other=True)
            asked, other = start_from_known(given, positions), None
        else:
            make = (
                start_blurred
                if space is None
                else start_in_row_space(
                    *space, gradients[str(first)], gradients.get(str(first).replace("weight", "bias"))
                )
            )
            drawn = make(images, rows, sum(counts), seed)
            asked, other = drawn[:, : counts[0]], drawn[:, counts[0] :]
        slots = targets.positions * problem.images_of(position=True)
        asked[torch.arange(len(rows)), slots] = images

        if first is None or space is None:
            inside = pixels(observation.parameters, gradients, tuple(images.shape[1:]))
        else:
            spanning = images[:, None] if given is None else torch.cat([given, images[:, None]], dim=1)
            inside = seen_by_dense_layer(first, observation.parameters, gradients, space, spanning, self.whitening)
        labels = None
        if self.knows == "nothing":
            labels = torch.zeros(len(rows), sum(counts), problem.ways)
        entered = None if given is None else inside.enter(given)
        start = Unknowns(inside.enter(asked), None if other is None else inside.enter(other), labels)
        schedule = Schedule(self.loss, self.layers, self.optimiser, self.rate, self.fit, self.iterations)
        found = invert(problem, inside, start, entered, slots, schedule, tick)
        return _read(problem, inside, start, found, entered, slots)


def _read(
    problem: Problem, inside: Coordinates, start: Unknowns, found: Inversion, known: Tensor | None, slots: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the targets' reconstructions as images and what the attack can tell about each."""
    here = torch.arange(len(slots))
    prior, made = start.asked[here, slots], found.unknowns.asked[here, slots]
    statistics = {
        # The coordinates are orthonormal: a distance in them is the distance in pixels.
        "distance": (made - prior).flatten(1).norm(dim=1),
        "class_kept": _class_kept(problem, inside, found.unknowns, known, prior, made),
        "fit_loss": found.fit_loss,
        "loss": found.loss,
        "outside": inside.outside(made - prior),
    }
    if inside.basis is not None:
        # What the gradient's row space tells of the target without any reconstruction, to print beside one.
        statistics["outside_prior"] = inside.outside(prior) / (prior.flatten(1).norm(dim=1) + 1e-12)
    return inside.leave(made[:, None])[:, 0], statistics


def _class_kept(
    problem: Problem, inside: Coordinates, found: Unknowns, known: Tensor | None, prior: Tensor, made: Tensor
) -> Tensor:
    """Return 1 where prior and reconstruction are of one class, else 0, `(T,)`.

    The paper does not say by which classifier. Here by the sent model adapted to the set not asked about, known or
    as reconstructed: the classifier that the adversary has for just this learner's classes.
    """
    other = known if known is not None else found.other
    assert other is not None
    labels = problem.labels(other=True) if found.labels is None else found.labels[:, -other.shape[1] :].softmax(dim=2)
    own = {name: value for name, value in inside.parameters.items() if name == inside.first}

    def classes(own: Parameters, images: Tensor, labels: Tensor, both: Tensor) -> Tensor:
        parameters = {**inside.parameters, **own}
        adapted = problem.rule.adapt(problem.model, parameters, Episode(images, labels, images, labels))
        return problem.model(adapted, both).argmax(dim=1)

    both = torch.stack([prior, made], dim=1)
    classed = vmap(classes, in_dims=(0, 0, None if found.labels is None else 0, 0))(own, other, labels, both)
    return (classed[:, 0] == classed[:, 1]).float()


def _ticker(progress: Progress | None, before: int, targets: int, total: int) -> Callable[[], None]:
    """Return what to call after every step of a chunk: it tells `progress` of target-steps, now and then."""
    steps = 0

    def tick() -> None:
        nonlocal steps
        steps += 1
        if progress is not None and steps % _TICKS == 0 and before + steps * targets < total:
            progress(before + steps * targets, total)

    return tick


def _check(observation: Observation, targets: Targets, known: Tensor | None, problem: Problem) -> None:
    """Raise `ValueError` naming the first thing whose shape or range does not fit the rest."""
    if set(observation.gradients) != set(observation.parameters):
        raise ValueError("the observation's gradients and parameters differ in their names")
    if len({len(value) for value in observation.gradients.values()}) != 1:
        raise ValueError("the observation's gradients differ in their number of learners")
    learners = len(next(iter(observation.gradients.values())))
    for name, value in observation.parameters.items():
        if observation.gradients[name].shape[1:] != value.shape:
            found = tuple(observation.gradients[name].shape[1:])
            raise ValueError(f"gradient {name!r} has shape {found}, the parameter {tuple(value.shape)}")
    if targets.images.ndim != 4:
        raise ValueError(f"targets.images has shape {tuple(targets.images.shape)}, not (T, C, H, W)")
    for name, values, limit in (
        ("rows", targets.rows, learners),
        ("positions", targets.positions, observation.ways),
    ):
        if values.shape != (len(targets.images),):
            raise ValueError(f"targets.{name} has shape {tuple(values.shape)}, not ({len(targets.images)},)")
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise ValueError(f"targets.{name} holds values outside [0, {limit})")
    expected = (learners, problem.images_of(other=True), *targets.images.shape[1:])
    if known is not None and known.shape != expected:
        raise ValueError(f"the known set has shape {tuple(known.shape)}, not {expected}")
    first = dense_first_layer(observation.model)
    pixel_count = targets.images[0].numel() if len(targets.images) else None
    if first is not None and pixel_count not in (None, observation.parameters[first].shape[1]):
        raise ValueError(
            f"target images have {pixel_count} values, {first!r} takes {observation.parameters[first].shape[1]}"
        )


def query_attack(**settings: Any) -> ReconstructionAttack:
    """Return the attack "was this image in the learner's query set?" with these fields of `ReconstructionAttack`.

    Raises pydantic's `ValidationError` for a setting that is unknown or not allowed.
    """
    return ReconstructionAttack(**settings)


def support_attack(**settings: Any) -> ReconstructionAttack:
    """Return the attack "was this image in the learner's support set?" with these fields of `ReconstructionAttack`.

    Its defaults differ: `knows: other`, `rate: 0.02`, `whitening: 1`, for the support images' part of a second-order
    meta-gradient is weak. Raises pydantic's `ValidationError` for a setting that is unknown or not allowed.
    """
    return ReconstructionAttack(**{"asks": "support", "knows": "other", "rate": 0.02, "whitening": 1.0, **settings})
