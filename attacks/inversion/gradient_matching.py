"""The common settings of inversions by gradient matching, and how many are computed at a time."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from metaleak.attacks.attack import Answers, Progress, Targets, joined
from metaleak.attacks.inversion.case import (
    Case,
    Seen,
    learners_at_a_time,
    one_round,
    several_rounds,
)
from metaleak.attacks.inversion.consistency import check_consistency
from metaleak.attacks.inversion.descent import Decay, Optimizer
from metaleak.attacks.inversion.gradient_inversion import Problem, Schedule, Set
from metaleak.attacks.inversion.matching import Layers, Loss
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Rounds
from metaleak.attacks.threat_model import Capability
from metaleak.clients.rules.memory import memory_share, peak_bytes

Made = TypeVar("Made")

_GIB = 1 << 30

_MOST = 128
"""The largest chunk of `chunk: auto`: larger ones are no faster."""

_ENOUGH = 5 * _GIB // 4
"""The bytes beyond which larger chunks are slower: measured for LeNet and Conv4, whose tensors exceed the caches."""

_WORKSPACE = 2.5
"""The factor on the memory of tensors: convolutions need workspace, measured 1.4 to 2.4 times in total."""


class GradientMatching(BaseModel):
    """Optimization of dummy images until their meta-gradient matches the observed one.

    The dummies are the images of the attacked set (`asks`) and, if it is unknown, of the other set. `knows`: `labels`
    (of every image), `other` (also the images of the other set, which the observation must have), or `nothing` (soft
    labels are optimized, too).

    `loss` is the distance of the two gradients, over all parameters jointly or for each of them (`layers`). All
    dummies take `iterations` steps; `rate` is about a pixel's first step, and `decay` its schedule. `signed` uses
    only the signs of the gradient. `total_variation` is the weight of the unknown images' total variation. `lbfgs`
    takes one evaluation per step, see the module `lbfgs`. `boxed` keeps images in [0, 1] if they are optimized as
    pixels.

    `chunk` inversions are computed at a time; finished chunks are kept if the attack is interrupted. `auto`: as many
    as fit into 1.25 GiB, from a measurement of one, at most 128. A chunk may take `memory` GiB; `null` is a quarter
    of the machine's memory (half of a GPU's) divided by its cores. A chunk that needs more is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_any_device: ClassVar[bool] = True
    needs_fixed_sets: ClassVar[bool] = True

    asks: Set = "query"
    knows: Literal["labels", "other", "nothing"] = "labels"
    loss: Loss = "cosine"
    layers: Layers = "joint"
    total_variation: Annotated[float, Field(ge=0, le=1000)] = 0.0
    optimizer: Optimizer = "adam"
    signed: bool = False
    boxed: bool = True
    decay: Decay = "linear"
    rate: Annotated[float, Field(gt=0, le=10)] = 0.05
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 100
    chunk: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    memory: Annotated[float, Field(gt=0, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _signs_have_no_curvature(self) -> Self:
        if self.signed and self.optimizer == "lbfgs":
            raise ValueError("signed: must be false with optimizer 'lbfgs', which needs the gradient's size")
        return self

    @property
    def requires(self) -> frozenset[Capability]:
        """The capabilities that the setting `knows` implies."""
        if self.knows == "nothing":
            return frozenset()
        return frozenset({"labels", "other set"} if self.knows == "other" else {"labels"})

    def case(
        self,
        observation: Observation,
        seed: int,
        targets: Targets | None = None,
        rounds: tuple[Seen, ...] | None = None,
        learners: Tensor | None = None,
    ) -> Case:
        """Return the input of an inversion: the observation's round, or the given `rounds` of its learners.

        `learners (L,)` are the numbers that determine random starts, by default the observation's rows. Raises
        `ValueError` if observation and targets do not fit together, or the observation lacks a known set.
        """
        problem = Problem(
            observation.model, observation.rule, observation.ways, observation.shots, observation.queries, self.asks
        )
        known = self.known_set(observation)
        if targets is not None:
            check_consistency(observation, targets, known, problem)
        rounds = rounds or one_round(observation)
        if learners is None:
            answered = rounds[0].answered
            learners = torch.arange(len(answered), device=answered.device)
        return Case(problem, rounds, known, learners, seed)

    def reason_against_rounds(self) -> str | None:
        """Return `None`: one set of images is matched to the gradients of all rounds."""
        return None

    def over_rounds(self, rounds: Rounds, targets: Targets, seed: int, progress: Progress | None = None) -> Answers:
        """Return answers from all rounds: one set of dummies, whose meta-gradients match those of every round.

        The objective is the mean of the rounds' matching losses, each at that round's parameters. Images are
        optimized as pixels, so `outside` equals `distance`. Raises `ValueError` if learners draw new episodes or
        classes from round to round, and as a call does. In memory are the gradients of all rounds for learners that
        are inverted together, up to 256 MiB or those of one learner, and the gradients of one whole round.
        """
        places, answers, done = [], [], 0
        for learners in learners_at_a_time(rounds):
            mine = torch.nonzero(torch.isin(targets.rows, learners)).flatten()
            if len(mine):
                observation, seen, positions = several_rounds(rounds, learners)
                rows = targets.rows[mine] - learners[0]
                asked = Targets(targets.examples[mine], rows, positions[mine].clamp(min=0))
                case = self.case(observation, seed, asked, seen, learners)
                places.append(mine)
                answers.append(self.answers(case, asked, part_of(progress, done, len(mine), len(targets.rows))))
                done += len(mine)
        found = joined(places, answers)
        return replace(found, scores=torch.where(positions < 0, torch.zeros_like(found.scores), found.scores))

    @abstractmethod
    def answers(self, case: Case, targets: Targets, progress: Progress | None) -> Answers:
        """Return the answers for targets that fit the case, computed in parts."""

    def known_set(self, observation: Observation) -> Tensor | None:
        """Return the set that is not attacked, `(L, n, ...)`, or `None` if `knows` does not include it.

        Raises `ValueError` if the observation does not have it.
        """
        if self.knows != "other":
            return None
        name = "known_query" if self.asks == "support" else "known_support"
        known: Tensor | None = getattr(observation, name)
        if known is None:
            raise ValueError(f"knows: 'other' needs the observation's {name}, which is None")
        return known

    def unknown_images(self, problem: Problem) -> tuple[int, int]:
        """Return the numbers of unknown images in the attacked and in the other set."""
        return problem.images_of(), 0 if self.knows == "other" else problem.images_of(other=True)

    def unknown_labels(self, problem: Problem, rows: Tensor) -> Tensor | None:
        """Return uniform logits of the labels of all images, `(T, N, ways)`, or `None` if the labels are known."""
        if self.knows != "nothing":
            return None
        return torch.zeros(len(rows), sum(self.unknown_images(problem)), problem.ways, device=rows.device)

    def schedule(self, fit: int = 0) -> Schedule:
        """Return the schedule of the optimization: `fit` steps with the target fixed, then the others."""
        return Schedule(
            loss=self.loss,
            layers=self.layers,
            optimizer=self.optimizer,
            rate=self.rate,
            fit=fit,
            iterations=self.iterations,
            decay=self.decay,
            total_variation=self.total_variation,
            signed=self.signed,
            boxed=self.boxed,
        )

    def chunk_size(self, one: Callable[[], object], count: int, device: torch.device) -> int:
        """Return how many of `count` inversions are computed at a time: as many as fit into memory, or `chunk`.

        `one` computes one of them with a single step. Raises `ValueError` if a chunk needs more memory than is
        allowed.
        """
        limit = memory_share(device) if self.memory is None else self.memory * _GIB
        each = _WORKSPACE * peak_bytes(one)
        asked = 1 if self.chunk == "auto" else min(self.chunk, count)
        if asked * each > limit:
            many = "one target" if asked == 1 else f"a chunk of {asked} targets"
            less = "" if asked == 1 else "set chunk to auto, or "
            needed, allowed = f"{asked * each / _GIB:.2g} GiB", f"{limit / _GIB:.2g} GiB"
            raise ValueError(
                f"{many} takes about {needed} of memory, more than the allowed {allowed}: {less}raise memory (in GiB)"
            )
        return max(1, min(_MOST, int(min(limit, _ENOUGH) / each))) if self.chunk == "auto" else self.chunk


def in_turn(
    parts: Sequence[Tensor],
    counts: Sequence[int],
    steps: int,
    make: Callable[[Tensor, Callable[[], None]], Made],
    progress: Progress | None,
) -> list[Made]:
    """Return the results of `make(part, tick)` for all `parts`; it calls `tick` after each of its `steps`.

    `counts` are the numbers of inversions in each part; `progress` counts single steps of single inversions.
    """
    made, before, total = [], 0, sum(counts) * steps
    for part, count in zip(parts, counts, strict=True):
        made.append(make(part, _ticker(progress, before, count, total)))
        before += count * steps
    if progress is not None:
        progress(total, total)
    return made


def part_of(progress: Progress | None, before: int, count: int, total: int) -> Progress | None:
    """Return a callback that reports `count` of the `total` targets to `progress`, after `before` others."""
    if progress is None:
        return None
    return lambda done, of: progress(before + done * count // max(1, of), total)


def _ticker(progress: Progress | None, before: int, count: int, total: int) -> Callable[[], None]:
    steps = 0

    def tick() -> None:
        nonlocal steps
        steps += 1
        if progress is not None and before + steps * count < total:
            progress(before + steps * count, total)

    return tick
