"""The split of a data set into learners' shards, non-members and held-out images, which are disjoint."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from metaleak.clients.dealt_shards import DealtShards, ShardIndices
from metaleak.clients.randomness import derived_ranks, derived_seed, keyed_generator

Fraction = Annotated[float, Field(ge=0, lt=1)]


class TaskShape(BaseModel):
    """The size of every task: `ways` classes with `shots` support and `queries` query images each.

    Each message of a learner is the mean over `episodes_per_message` episodes of the same classes, for each of which
    it draws images anew.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ways: Annotated[int, Field(ge=2)] = 5
    shots: Annotated[int, Field(ge=1)] = 1
    queries: Annotated[int, Field(ge=1)] = 1
    episodes_per_message: Annotated[int, Field(ge=1, le=1000)] = 1


class Partition(BaseModel):
    """How a data set is divided among learners.

    `classes_per_learner: null` means the task's `ways`, `examples_per_class: null` its `shots + queries`. `held_out`
    and `non_members` are fractions of each class's images; `held_out` is ignored for a data set that keeps whole
    classes for evaluation. With `most_examples_per_class` shards differ in size: each learner's number of examples
    per class is drawn between the two limits. With `dirichlet` each learner draws its classes with probabilities of
    its own, which come from the Dirichlet distribution of that concentration: the smaller, the more skewed (Hsu et
    al. 2019). Otherwise it gets the classes with the most images left. `overlap` is the fraction of a shard's images
    of a class that the next learner with this class also holds. Raises `ValueError` when the fractions leave no
    images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learners: Annotated[int, Field(ge=1)] = 100
    classes_per_learner: Annotated[int, Field(ge=2)] | None = None
    examples_per_class: Annotated[int, Field(ge=2)] | None = None
    most_examples_per_class: Annotated[int, Field(ge=2)] | None = None
    dirichlet: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    overlap: Fraction = 0.0
    held_out: Fraction = 0.1
    non_members: Fraction = 0.3

    @model_validator(mode="after")
    def _leave_some(self) -> "Partition":
        if self.held_out + self.non_members >= 1:
            raise ValueError(
                f"held_out + non_members is {self.held_out + self.non_members:g}, "
                "it must be below 1 to leave images for learners"
            )
        return self

    def fixed_sets(self, task: TaskShape) -> bool:
        """Return whether every learner holds the same sets in every round, because its shard is one episode.

        This depends on the settings only: with sizes drawn between two limits it is `False`, whatever is drawn.
        """
        needed = task.shots + task.queries
        return self.classes_per_learner in (None, task.ways) and all(
            size in (None, needed) for size in (self.examples_per_class, self.most_examples_per_class)
        )


@dataclass(frozen=True, eq=False)
class Split:
    """The division of a data set: the learners' `shards` by learner id, and ascending int64 indices of the rest.

    `non_members (n,)` are images of the learners' classes that no learner ever holds; `held_out (m,)` are for
    evaluation tasks. Each index is in at most one of these places; with an overlap it may be in several shards.
    """

    shards: Sequence[ShardIndices]
    non_members: Tensor
    held_out: Tensor


def split(
    labels: Tensor, held_out_classes: frozenset[int], partition: Partition, task: TaskShape, seed: int
) -> Split:
    """Return the split of a data set with `labels (n,)` int64.

    Every class is shuffled by its own key. Its first images are held out and the next are non-members. Learners take
    theirs from the rest in the order of their ids, each from the classes with the most images left, so that a
    learner's shard does not change when learners are added after it. Raises `ValueError` when a shard is too small
    for the task, or the data set too small for the learners.
    """
    classes_each, _ = _shard_size(partition, task)
    sizes = shard_sizes(partition, task, seed)
    pools: dict[int, Tensor] = {}
    non_members: list[Tensor] = []
    held_out: list[Tensor] = []
    order = _by_class(labels)
    for label, images in enumerate(order.tensor_split(torch.bincount(labels).cumsum(0)[:-1])):
        count = len(images)
        if label in held_out_classes:
            held_out.append(images)
            continue
        images = images[torch.randperm(count, generator=keyed_generator(seed, "partition", label))]
        kept = 0 if held_out_classes else round(partition.held_out * count)
        outside = kept + round(partition.non_members * count)
        held_out.append(images[:kept])
        non_members.append(images[kept:outside])
        pools[label] = images[outside:]
    return Split(
        shards=_deal(pools, partition, classes_each, sizes, seed),
        non_members=_ascending(non_members),
        held_out=_ascending(held_out),
    )


def _shard_size(partition: Partition, task: TaskShape) -> tuple[int, int]:
    """Return the classes per learner and the images per class, checked against the task."""
    needed = task.shots + task.queries
    classes_each = task.ways if partition.classes_per_learner is None else partition.classes_per_learner
    images_each = needed if partition.examples_per_class is None else partition.examples_per_class
    if classes_each < task.ways:
        raise ValueError(f"classes_per_learner is {classes_each}, the task needs at least ways = {task.ways}")
    if images_each < needed:
        raise ValueError(f"examples_per_class is {images_each}, the task needs at least shots + queries = {needed}")
    return classes_each, images_each


def shard_sizes(partition: Partition, task: TaskShape, seed: int) -> list[int]:
    """Return for every learner how many images it holds of each of its classes; checked against the task."""
    least = _shard_size(partition, task)[1]
    most = least if partition.most_examples_per_class is None else partition.most_examples_per_class
    if most < least:
        raise ValueError(f"most_examples_per_class is {most}, every learner has at least {least}")
    if most == least:
        return [least] * partition.learners
    spread = most - least + 1
    return [
        least + derived_seed(seed, "partition", "size", learner) % spread for learner in range(partition.learners)
    ]


def _deal(
    pools: dict[int, Tensor], partition: Partition, classes_each: int, sizes: list[int], seed: int
) -> DealtShards:
    """Return one shard per learner, dealt in the order of learner ids from every class's shuffled pool."""
    left = {label: len(pool) for label, pool in pools.items()}

    def step(size: int) -> int:
        return max(1, round(size * (1 - partition.overlap)))

    def too_many(possible: int) -> ValueError:
        images = f"{min(sizes)} to {max(sizes)}" if len(set(sizes)) > 1 else str(sizes[0])
        whole = sum(len(pool) for pool in pools.values())
        return ValueError(
            f"{partition.learners} learners with {classes_each} classes x {images} images each are asked, "
            f"the data ({whole} images of {len(pools)} classes left for learners) suffices for {possible}"
        )

    choose = _DirichletClasses(left, partition.dirichlet, seed) if partition.dirichlet else _Fullest(left, seed)
    if not partition.dirichlet and len(set(sizes)) == 1:
        portions = [0 if count < sizes[0] else 1 + (count - sizes[0]) // step(sizes[0]) for count in left.values()]
        if partition.learners > (possible := _learners_possible(portions, classes_each)):
            raise too_many(possible)
        if len(set(left.values())) == 1 and len(left) % classes_each == 0:
            images = next(iter(left.values()))
            return DealtShards(pools, _InTurns(tuple(left), images, step(sizes[0]), classes_each, seed), sizes)
    chosen = np.empty((len(sizes), classes_each), np.int32)
    starts = np.empty((len(sizes), classes_each), np.int64)
    held, steps = {label: len(pool) for label, pool in pools.items()}, {size: step(size) for size in set(sizes)}
    for learner, size in enumerate(sizes):
        labels = choose(learner, classes_each, size)
        if len(labels) < classes_each:
            raise too_many(learner)
        chosen[learner] = labels
        starts[learner] = [held[label] - left[label] for label in labels]
        for label in labels:
            left[label] -= steps[size]
        choose.put_back(labels)
    return DealtShards(pools, lambda learner: (chosen[learner].tolist(), starts[learner].tolist()), sizes)


class _InTurns:
    """What `_Fullest` deals from classes of the same number of `images`, for any learner without those before it.

    All `labels` are dealt once, to `len(labels) / each` learners, before one is dealt again, `step` images later.
    """

    def __init__(self, labels: tuple[int, ...], images: int, step: int, each: int, seed: int) -> None:
        self._labels, self._images, self._step, self._each, self._seed = labels, images, step, each, seed

    def __call__(self, learner: int) -> tuple[list[int], list[int]]:
        """Return a learner's classes, ascending, and where in each its images begin."""
        turn, place = divmod(learner, len(self._labels) // self._each)
        left = self._images - turn * self._step
        ranks = derived_ranks((self._seed, "partition", "tie"), ((label, left) for label in self._labels))
        order = sorted(zip(ranks, self._labels, strict=True))
        labels = sorted(label for _, label in order[place * self._each : (place + 1) * self._each])
        return labels, [turn * self._step] * self._each


class _Fullest:
    """Chooses the classes with the most images `left`, which for shards of one size serves the most learners."""

    def __init__(self, left: dict[int, int], seed: int) -> None:
        self._left, self._seed = left, seed
        self._heap = [self._entry(label) for label, count in left.items() if count > 0]
        heapq.heapify(self._heap)

    def __call__(self, learner: int, count: int, size: int) -> list[int]:
        """Return at most `count` classes, ascending, with `size` images left each."""
        fullest = [heapq.heappop(self._heap)[2] for _ in range(min(count, len(self._heap)))]
        return sorted(label for label in fullest if self._left[label] >= size)

    def put_back(self, labels: list[int]) -> None:
        """Make these classes available again, with the images that are left of them."""
        for label in labels:
            if self._left[label] > 0:
                heapq.heappush(self._heap, self._entry(label))

    def _entry(self, label: int) -> tuple[int, int, int]:
        left = self._left[label]
        # Ties are broken by a key of the class and the images left, so that they do not depend on other learners.
        return -left, derived_seed(self._seed, "partition", "tie", label, left), label


class _DirichletClasses:
    """Draws classes without replacement, with probabilities from a Dirichlet distribution for each learner."""

    def __init__(self, left: dict[int, int], concentration: float, seed: int) -> None:
        self._left, self._concentration, self._seed = left, concentration, seed

    def __call__(self, learner: int, count: int, size: int) -> list[int]:
        """Return at most `count` classes, ascending, with `size` images left each."""
        random = np.random.default_rng(derived_seed(self._seed, "partition", "classes", learner))
        shape = len(self._left)
        # Logarithms, since a gamma variate with a small shape is 0 in floating point: G(a) = G(a + 1) U^(1/a).
        chances = np.log(random.standard_gamma(self._concentration + 1, shape))
        chances += np.log1p(-random.random(shape)) / self._concentration
        order = np.argsort(-(chances + random.gumbel(size=shape)), kind="stable")
        labels = list(self._left)
        able = [labels[place] for place in order.tolist() if self._left[labels[place]] >= size]
        return sorted(able[:count])

    def put_back(self, labels: list[int]) -> None:
        """Do nothing, since every draw is from all classes."""


def _learners_possible(portions: list[int], classes_each: int) -> int:
    """Return the largest n for which n learners can each have a portion of `classes_each` different classes.

    That is the largest n with sum over classes of min(portions, n) >= n * classes_each.
    """
    low, high = 0, sum(portions) // classes_each
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in portions) >= middle * classes_each:
            low = middle
        else:
            high = middle - 1
    return low


def _by_class(labels: Tensor) -> Tensor:
    """Return the indices of `labels`, those of a class together and ascending."""
    if not len(labels) or int(labels.max()) >= 2**15:
        return torch.argsort(labels, stable=True)
    # NumPy sorts numbers of two bytes by counting them.
    return torch.from_numpy(np.argsort(labels.numpy().astype(np.int16), kind="stable"))


def _ascending(pieces: list[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *pieces]).sort().values
