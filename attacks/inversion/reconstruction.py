"""The paper's query and support attacks: meta-gradient matching that starts at the target image.

Rafiei, Maheri, Rabiee 2024 (arXiv 2406.00249). The target is put into a dummy episode, the dummy is optimized until
its meta-gradient matches the learner's, and the target is a member if it stayed what it was. The paper's loss,
optimizer and schedule could not be read; the fields below are ours, with defaults found on MNIST and Fashion-MNIST.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from metaleak.attacks.attack import Answers, Progress, Targets, joined
from metaleak.attacks.inversion.consistency import check_consistency
from metaleak.attacks.inversion.descent import Decay, Optimizer
from metaleak.attacks.inversion.gradient_inversion import Problem, Schedule, Set, Unknowns, invert
from metaleak.attacks.inversion.image_space import pixels, row_space, seen_by_dense_layer
from metaleak.attacks.inversion.matching import Layers, Loss
from metaleak.attacks.inversion.outcome import read_outcome
from metaleak.attacks.inversion.starts import start_blurred, start_from_known, start_in_row_space, start_random
from metaleak.attacks.observation import Observation
from metaleak.attacks.threat_model import Capability
from metaleak.clients.models import bias_of, input_weight_of
from metaleak.clients.rules.memory import memory_share, peak_bytes

_GIB = 1 << 30

_MOST = 128
"""Targets that `chunk: auto` computes at a time, at most: more are no faster."""

_ENOUGH = 5 * _GIB // 4
"""Bytes beyond which larger chunks are slower: measured for LeNet and Conv4, whose tensors leave the caches."""

_WORKSPACE = 2.5
"""Memory in units of what tensors take: convolutions take more inside, measured 1.4 to 2.4 times in all."""

_TINY = 1e-12
"""Added to a loss before its logarithm is taken: what float32 leaves of a perfect match."""


class ReconstructionAttack(BaseModel):
    """Was this image in the learner's set that the attack `asks` about?

    `knows`: `labels` (of every image), `other` (also the images of the set not asked about, which the observation
    must carry), or `nothing` (soft labels are optimized too).

    `decision`: `distance` scores by how little the target moved, in L2 over pixels. `outside` counts only movement
    out of the row space of the observed first-layer gradient, where a member lies and a non-member does not; the
    same as `distance` for models whose first layer is not dense. `fit` scores by how well a gradient can be matched
    with the target in it: minus the logarithm of the loss before it is released, for which `iterations: 1` is enough.
    `class` is the paper's rule: 1 where the adapted model gives prior and reconstruction the same class, else 0.

    The first `fit` steps hold the target and move the rest, `iterations` more move everything, at a `rate` that is
    about a pixel's first step and falls by `decay`. `signed` follows the signs of the gradient. `total_variation` is
    the weight of the unknown images' own. `lbfgs` spends one evaluation a step, see the module `lbfgs`.
    Images are reconstructed as pixels, which `boxed` keeps in [0, 1], unless the model's first layer is dense,
    `start` is `target` and `total_variation` 0: then in the few directions that the layer sees, without a box.
    `whitening` evens out how strongly the directions of a dense first layer's gradient count, see
    `seen_by_dense_layer`.

    `chunk` targets are computed at a time, and what is done of them is kept when the attack is interrupted. `auto`:
    as many as fit into 1.25 GiB by a measurement of one, 128 at most. A chunk may take `memory` GiB; `null` is a
    quarter of the machine's memory (half of a GPU's) divided by its cores. What needs more is refused.

    `start`: at the `target`, as the paper does, or `random`, as the classical reconstructions do: then each learner
    is inverted once, whatever is asked about it, and `distance` is that between the target and the nearest image
    reconstructed in the set asked about. It holds nothing and knows no prior: `fit` must be 0, `decision` `distance`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_any_device: ClassVar[bool] = True

    asks: Set = "query"
    knows: Literal["labels", "other", "nothing"] = "labels"
    decision: Literal["outside", "distance", "fit", "class"] = "outside"
    loss: Loss = "cosine"
    layers: Layers = "joint"
    start: Literal["target", "random"] = "target"
    total_variation: Annotated[float, Field(ge=0, le=1000)] = 0.0
    optimizer: Optimizer = "adam"
    signed: bool = False
    boxed: bool = True
    decay: Decay = "linear"
    rate: Annotated[float, Field(gt=0, le=10)] = 0.05
    fit: Annotated[int, Field(ge=0, le=100_000)] = 100
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 100
    whitening: Annotated[float, Field(ge=0, le=1)] = 0.5
    chunk: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    memory: Annotated[float, Field(gt=0, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.start == "random" and (self.fit or self.decision != "distance"):
            raise ValueError("start 'random' has no prior to hold or compare: it needs fit 0 and decision 'distance'")
        if self.decision == "fit" and not self.fit:
            raise ValueError("decision 'fit' needs steps in which the target is held: fit is 0")
        if self.signed and self.optimizer == "lbfgs":
            raise ValueError("signed does not go with optimizer 'lbfgs': curvature needs the gradient's sizes")
        return self

    @property
    def requires(self) -> frozenset[Capability]:
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
        `distance` and `loss` only. The losses are of what was minimized, total variation included.
        A target's answer depends on the seed, its learner and itself, not on the targets beside it, but for the last
        bits, which the chunk decides. Raises `ValueError` when the shapes do not fit, when the observation lacks what
        `knows` says is known, or when a chunk needs more memory than it may take.
        """
        if not len(targets.examples):
            self._checked(observation, targets)
            return Answers(torch.empty(0), torch.empty_like(targets.examples))
        parts = self.parts(observation, targets)
        problem, known = self._checked(observation, targets)
        counts = [self._count(targets.at(places)) for places in parts]
        steps = self.fit + self.iterations
        answers, total = [], sum(counts) * steps
        for number, places in enumerate(parts):
            tick = _ticker(progress, sum(counts[:number]) * steps, counts[number], total)
            answers.append(self._answers(observation, problem, targets.at(places), known, seed, tick))
        if progress is not None:
            progress(total, total)
        return joined(parts, answers)

    def parts(self, observation: Observation, targets: Targets) -> Sequence[Tensor]:
        """Return the places of the targets that are computed together, see `Divisible`; raises as a call does."""
        problem, known = self._checked(observation, targets)
        everywhere = torch.arange(len(targets.rows), device=targets.rows.device)
        if not len(everywhere):
            return ()
        chunk = self._chunk(observation, problem, targets, known)
        if self.start == "target":
            return torch.split(everywhere, chunk)
        _, of = torch.unique(targets.rows, return_inverse=True)
        return [everywhere[of // chunk == number] for number in range(int(of.max()) // chunk + 1)]

    def _chunk(self, observation: Observation, problem: Problem, targets: Targets, known: Tensor | None) -> int:
        """Return how many inversions are made at a time: as many as there is memory for, or what `chunk` says."""
        limit = memory_share(targets.examples.device) if self.memory is None else self.memory * _GIB
        one = targets.at(slice(1))
        short = self.model_copy(update={"fit": 0, "iterations": 1})
        each = _WORKSPACE * peak_bytes(lambda: short._answers(observation, problem, one, known, 0, lambda: None))
        asked = 1 if self.chunk == "auto" else min(self.chunk, self._count(targets))
        if asked * each > limit:
            many = "one target" if asked == 1 else f"a chunk of {asked} targets"
            less = "" if asked == 1 else "set chunk to auto, or "
            needed, allowed = f"{asked * each / _GIB:.2g} GiB", f"{limit / _GIB:.2g} GiB"
            raise ValueError(
                f"{many} takes about {needed}, more than the {allowed} that it may: {less}raise memory (in GiB)"
            )
        return max(1, min(_MOST, int(min(limit, _ENOUGH) / each))) if self.chunk == "auto" else self.chunk

    def _count(self, targets: Targets) -> int:
        """Return how many inversions the targets take: one each, or from a random start one a learner."""
        return len(targets.rows) if self.start == "target" else len(torch.unique(targets.rows))

    def _checked(self, observation: Observation, targets: Targets) -> tuple[Problem, Tensor | None]:
        """Return what is inverted, and the other set where it is known; raise for what does not fit together."""
        problem = Problem(
            observation.model, observation.rule, observation.ways, observation.shots, observation.queries, self.asks
        )
        known = self._known(observation, problem)
        check_consistency(observation, targets, known, problem)
        return problem, known

    def _answers(
        self,
        observation: Observation,
        problem: Problem,
        targets: Targets,
        known: Tensor | None,
        seed: int,
        tick: Callable[[], None],
    ) -> Answers:
        """Return the answers to the targets of one chunk."""
        if self.start == "random":
            return self._from_random(observation, problem, targets, known, seed, tick)
        reconstructions, statistics = self._from_targets(observation, problem, targets, known, seed, tick)
        if self.decision == "class":
            score = statistics["class_kept"]
        elif self.decision == "fit":
            score = -(statistics["fit_loss"] + _TINY).log()
        else:
            score = -statistics[self.decision]
        return Answers(score, reconstructions, statistics)

    def _known(self, observation: Observation, problem: Problem) -> Tensor | None:
        if self.knows != "other":
            return None
        name = "known_query" if problem.asks == "support" else "known_support"
        known: Tensor | None = getattr(observation, name)
        if known is None:
            raise ValueError(f"knows 'other' needs the observation's {name}, which is None")
        return known

    def _from_targets(
        self,
        observation: Observation,
        problem: Problem,
        targets: Targets,
        known: Tensor | None,
        seed: int,
        tick: Callable[[], None],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return reconstructions `(T, C, H, W)` and statistics for the targets of one chunk."""
        images = targets.examples.float()
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
            positions = problem.labels(rows.device) * problem.images_of(position=True, other=True)
            asked, other = start_from_known(given, positions), None
        else:
            make = (
                start_blurred
                if space is None
                else start_in_row_space(*space, gradients[str(first)], gradients.get(bias_of(str(first))))
            )
            drawn = make(images, rows, sum(counts), seed)
            asked, other = drawn[:, : counts[0]], drawn[:, counts[0] :]
        slots = targets.positions * problem.images_of(position=True)
        asked[torch.arange(len(rows), device=rows.device), slots] = images

        if first is None or space is None:
            inside = pixels(observation.parameters, gradients, tuple(images.shape[1:]))
        else:
            spanning = images[:, None] if given is None else torch.cat([given, images[:, None]], dim=1)
            inside = seen_by_dense_layer(first, observation.parameters, gradients, space, spanning, self.whitening)
        entered = None if given is None else inside.enter(given)
        labels = self._labels(problem, rows)
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
        tick: Callable[[], None],
    ) -> Answers:
        """Invert every learner that is asked about, and answer with each target's nearest image."""
        rows, of = torch.unique(targets.rows, return_inverse=True)
        shape = tuple(targets.examples.shape[1:])
        gradients = {name: value[rows] for name, value in observation.gradients.items()}
        given = None if known is None else known[rows].float()
        drawn = start_random(sum(self._counts(problem)), shape, rows, seed)
        asked, other = drawn[:, : problem.images_of()], drawn[:, problem.images_of() :]
        start = Unknowns(asked, other if given is None else None, self._labels(problem, rows))
        inside = pixels(observation.parameters, gradients, shape)
        found = invert(problem, inside, start, given, None, self._schedule(), tick)
        made = found.unknowns.asked
        # Targets one by one: each compares as many images as the asked set has.
        distances = torch.stack(
            [
                (made[row] - image).flatten(1).norm(dim=1)
                for row, image in zip(of.tolist(), targets.examples.float(), strict=True)
            ]
        )
        distance, nearest = distances.min(dim=1)
        return Answers(-distance, made[of, nearest], {"distance": distance, "loss": found.loss[of]})

    def _counts(self, problem: Problem) -> tuple[int, int]:
        """Return how many images of the asked and of the other set are unknown."""
        return problem.images_of(), 0 if self.knows == "other" else problem.images_of(other=True)

    def _labels(self, problem: Problem, rows: Tensor) -> Tensor | None:
        """Return logits of labels that say nothing `(T, N, ways)`, of all images; `None` where they are known."""
        if self.knows != "nothing":
            return None
        return torch.zeros(len(rows), sum(self._counts(problem)), problem.ways, device=rows.device)

    def _schedule(self) -> Schedule:
        return Schedule(**{name: getattr(self, name) for name in Schedule.__dataclass_fields__})


def _ticker(progress: Progress | None, before: int, targets: int, total: int) -> Callable[[], None]:
    """Return what to call after every step of a chunk: it tells `progress` of target-steps."""
    steps = 0

    def tick() -> None:
        nonlocal steps
        steps += 1
        if progress is not None and before + steps * targets < total:
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
