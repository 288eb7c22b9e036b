"""The paper's query and support attacks: meta-gradient matching that starts at the target image.

Rafiei, Maheri, Rabiee 2024 (arXiv 2406.00249). The target is put into a dummy episode, the dummy is optimised until
its meta-gradient matches the learner's, and the target is a member if it stayed what it was. The paper's loss,
optimiser and schedule could not be read; the fields below are ours, with defaults found on MNIST and Fashion-MNIST.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from metaleak.attacks.consistency import check_consistency
from metaleak.attacks.coordinates import pixels, row_space, seen_by_dense_layer
from metaleak.attacks.descent import Decay, Optimiser
from metaleak.attacks.inversion import Problem, Schedule, Set, Unknowns, invert
from metaleak.attacks.matching import Layers, Loss
from metaleak.attacks.observation import Answers, Knowledge, Observation, Progress, Targets
from metaleak.attacks.outcome import read_outcome
from metaleak.attacks.starts import start_blurred, start_from_known, start_in_row_space, start_random
from metaleak.clients.models import input_weight_of

_TICKS = 10
"""Steps between two calls of a progress callback."""

_TINY = 1e-12
"""Added to a loss before its logarithm is taken: what float32 leaves of a perfect match."""


class ReconstructionAttack(BaseModel):
    """Was this image in the learner's set that the attack `asks` about?

    `knows`: `labels` (of every image), `other` (also the images of the set not asked about, which the observation
    must carry), or `nothing` (soft labels are optimised too).

    `decision`: `distance` scores by how little the target moved, in L2 over pixels. `outside` counts only movement
    out of the row space of the observed first-layer gradient, where a member lies and a non-member does not; the
    same as `distance` for models whose first layer is not dense. `fit` scores by how well a gradient can be matched
    with the target in it: minus the logarithm of the loss before it is released, for which `iterations: 1` is enough.
    `class` is the paper's rule: 1 where the adapted model gives prior and reconstruction the same class, else 0.

    The first `fit` steps hold the target and move the rest, `iterations` more move everything, at a `rate` that is
    about a pixel's first step and falls by `decay`. `signed` follows the signs of the gradient. `total_variation` is
    the weight of the unknown images' own. `lbfgs` spends one evaluation a step, see `metaleak.attacks.lbfgs`.
    Images are reconstructed as pixels, which `boxed` keeps in [0, 1], unless the model's first layer is dense,
    `start` is `target` and `total_variation` 0: then in the few directions that the layer sees, without a box.
    `whitening` evens out how strongly the directions of a dense first layer's gradient count, see
    `seen_by_dense_layer`. `chunk` targets are computed at a time: about 3 MB each for the default MLP.

    `start`: at the `target`, as the paper does, or `random`, as the classical reconstructions do: then each learner
    is inverted once, whatever is asked about it, and `distance` is that between the target and the nearest image
    reconstructed in the set asked about. It holds nothing and knows no prior: `fit` must be 0, `decision` `distance`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: Set = "query"
    knows: Literal["labels", "other", "nothing"] = "labels"
    decision: Literal["outside", "distance", "fit", "class"] = "outside"
    loss: Loss = "cosine"
    layers: Layers = "joint"
    start: Literal["target", "random"] = "target"
    total_variation: Annotated[float, Field(ge=0, le=1000)] = 0.0
    optimiser: Optimiser = "adam"
    signed: bool = False
    boxed: bool = True
    decay: Decay = "linear"
    rate: Annotated[float, Field(gt=0, le=10)] = 0.05
    fit: Annotated[int, Field(ge=0, le=100_000)] = 100
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 100
    whitening: Annotated[float, Field(ge=0, le=1)] = 0.5
    chunk: Annotated[int, Field(ge=1, le=100_000)] = 128

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.start == "random" and (self.fit or self.decision != "distance"):
            raise ValueError("start 'random' has no prior to hold or compare: it needs fit 0 and decision 'distance'")
        if self.decision == "fit" and not self.fit:
            raise ValueError("decision 'fit' needs steps in which the target is held: fit is 0")
        if self.signed and self.optimiser == "lbfgs":
            raise ValueError("signed does not go with optimiser 'lbfgs': curvature needs the gradient's sizes")
        return self

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
        the target's own norm that lies out of the row space of the observed first-layer gradient. A random start has
        `distance` and `loss` only. The losses are of what was minimised, total variation included.
        A target's answer depends on the seed, its learner and itself, not on the targets beside it. Raises
        `ValueError` when the shapes do not fit, or when the observation lacks what `knows` says is known.
        """
        problem = Problem(
            observation.model, observation.rule, observation.ways, observation.shots, observation.queries, self.asks
        )
        known = self._known(observation, problem)
        check_consistency(observation, targets, known, problem)
        if not len(targets.rows):
            return Answers(torch.empty(0), torch.empty_like(targets.images))
        if self.start == "random":
            return self._from_random(observation, problem, targets, known, seed, progress)
        reconstructions = torch.empty_like(targets.images)
        statistics: dict[str, Tensor] = {}
        for some, tick in self._chunks(len(targets.rows), progress):
            part = Targets(targets.images[some], targets.rows[some], targets.positions[some])
            made, found = self._invert(observation, problem, part, known, seed, tick)
            reconstructions[some] = made
            for name, values in found.items():
                statistics.setdefault(name, torch.empty(len(targets.rows)))[some] = values
        if self.decision == "class":
            score = statistics["class_kept"]
        elif self.decision == "fit":
            score = -(statistics["fit_loss"] + _TINY).log()
        else:
            score = -statistics[self.decision]
        return Answers(score, reconstructions, statistics)

    def _chunks(self, count: int, progress: Progress | None) -> Iterator[tuple[slice, Callable[[], None]]]:
        """Yield slices of `count` problems and what to call after each of their steps; report the end at the end."""
        steps = self.fit + self.iterations
        for begin in range(0, count, self.chunk):
            size = min(self.chunk, count - begin)
            yield slice(begin, begin + size), _ticker(progress, begin * steps, size, count * steps)
        if progress is not None:
            progress(count * steps, count * steps)

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
        counts = self._counts(problem)

        first = None if self.total_variation else input_weight_of(observation.model)
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
        entered = None if given is None else inside.enter(given)
        labels = self._labels(problem, len(rows))
        start = Unknowns(inside.enter(asked), None if other is None else inside.enter(other), labels)
        found = invert(problem, inside, start, entered, slots, self._schedule(), tick)
        return read_outcome(problem, inside, start, found, entered, slots)

    def _from_random(
        self,
        observation: Observation,
        problem: Problem,
        targets: Targets,
        known: Tensor | None,
        seed: int,
        progress: Progress | None,
    ) -> Answers:
        """Invert every learner that is asked about, and answer with each target's nearest image."""
        learners, of = torch.unique(targets.rows, return_inverse=True)
        shape = tuple(targets.images.shape[1:])
        made = torch.empty(len(learners), problem.images_of(), *shape)
        losses = torch.empty(len(learners))
        for some, tick in self._chunks(len(learners), progress):
            rows = learners[some]
            gradients = {name: value[rows] for name, value in observation.gradients.items()}
            given = None if known is None else known[rows].float()
            drawn = start_random(sum(self._counts(problem)), shape, rows, seed)
            asked, other = drawn[:, : problem.images_of()], drawn[:, problem.images_of() :]
            start = Unknowns(asked, other if given is None else None, self._labels(problem, len(rows)))
            inside = pixels(observation.parameters, gradients, shape)
            found = invert(problem, inside, start, given, None, self._schedule(), tick)
            made[some], losses[some] = found.unknowns.asked, found.loss
        # Targets one by one: each compares as many images as the asked set has.
        distances = torch.stack(
            [
                (made[row] - image).flatten(1).norm(dim=1)
                for row, image in zip(of.tolist(), targets.images.float(), strict=True)
            ]
        )
        distance, nearest = distances.min(dim=1)
        return Answers(-distance, made[of, nearest], {"distance": distance, "loss": losses[of]})

    def _counts(self, problem: Problem) -> tuple[int, int]:
        """Return how many images of the asked and of the other set are unknown."""
        return problem.images_of(), 0 if self.knows == "other" else problem.images_of(other=True)

    def _labels(self, problem: Problem, count: int) -> Tensor | None:
        """Return logits of labels that say nothing `(count, N, ways)`, of all images; `None` where they are known."""
        if self.knows != "nothing":
            return None
        return torch.zeros(count, sum(self._counts(problem)), problem.ways)

    def _schedule(self) -> Schedule:
        return Schedule(**{name: getattr(self, name) for name in Schedule.__dataclass_fields__})


def _ticker(progress: Progress | None, before: int, targets: int, total: int) -> Callable[[], None]:
    """Return what to call after every step of a chunk: it tells `progress` of target-steps, now and then."""
    steps = 0

    def tick() -> None:
        nonlocal steps
        steps += 1
        if progress is not None and steps % _TICKS == 0 and before + steps * targets < total:
            progress(before + steps * targets, total)

    return tick


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
