"""Who holds which image: learners' shards, non-members and held-out images, with no image in two places."""

import heapq
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from metaleak.clients.randomness import derived_seed, keyed_generator

Fraction = Annotated[float, Field(ge=0, lt=1)]


class TaskShape(BaseModel):
    """The size of every task: `ways` classes with `shots` support and `queries` query images each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ways: Annotated[int, Field(ge=2)] = 5
    shots: Annotated[int, Field(ge=1)] = 1
    queries: Annotated[int, Field(ge=1)] = 1


class Partition(BaseModel):
    """How a data set is dealt out.

    `classes_per_learner: null` means the task's `ways`, `examples_per_class: null` its `shots + queries`.
    `held_out` and `non_members` are fractions of every class's images; `held_out` is ignored for a data set
    that keeps whole classes for evaluation. Raises `ValueError` when the fractions leave nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learners: Annotated[int, Field(ge=1)] = 100
    classes_per_learner: Annotated[int, Field(ge=2)] | None = None
    examples_per_class: Annotated[int, Field(ge=2)] | None = None
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


@dataclass(frozen=True, eq=False)
class ShardIndices:
    """What one learner holds: `classes`, ascending, and the indices of its examples.

    `examples (classes, examples_per_class)` is int64, and its row i belongs to `classes[i]`.
    """

    classes: tuple[int, ...]
    examples: Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """A data set dealt out: learners' `shards` by learner id, and ascending int64 indices of the rest.

    `non_members (n,)` are images of the learners' classes that no learner ever holds; `held_out (m,)` are for
    evaluation tasks. Every index stands in at most one place.
    """

    shards: tuple[ShardIndices, ...]
    non_members: Tensor
    held_out: Tensor


def split(
    labels: Tensor, held_out_classes: frozenset[int], partition: Partition, task: TaskShape, seed: int
) -> Split:
    """Return who holds which image of a data set with `labels (n,)` int64.

    Every class is shuffled by its own key; its first images are held out, the next are non-members, learners
    draw from the rest in the order of their ids, each taking the classes with the most images left. So a
    learner's shard does not change when learners are added after it. Raises `ValueError` when a shard is too
    small for the task, or the data for the learners.
    """
    classes_each, images_each = _shard_size(partition, task)
    pools: dict[int, Tensor] = {}
    non_members: list[Tensor] = []
    held_out: list[Tensor] = []
    order = torch.argsort(labels, stable=True)
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
        shards=_deal(pools, partition.learners, classes_each, images_each, seed),
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


def _deal(
    pools: dict[int, Tensor], learners: int, classes_each: int, images_each: int, seed: int
) -> tuple[ShardIndices, ...]:
    """Return one shard a learner, dealt in the order of learner ids from every class's shuffled pool."""
    portions = {label: len(pool) // images_each for label, pool in pools.items()}
    possible = _learners_possible(list(portions.values()), classes_each)
    if learners > possible:
        left = sum(len(pool) for pool in pools.values())
        raise ValueError(
            f"{learners} learners with {classes_each} classes x {images_each} images each are asked, "
            f"the data ({left} images of {len(pools)} classes left for learners) suffices for {possible}"
        )

    def entry(label: int, images_left: int) -> tuple[int, int, int]:
        # The key of a tie says which class and how much of it is left, so it owes nothing to other learners.
        return -images_left, derived_seed(seed, "partition", "tie", label, images_left), label

    heap = [entry(label, len(pools[label])) for label, count in portions.items() if count]
    heapq.heapify(heap)
    shards = []
    for _ in range(learners):
        # Always the fullest classes: this serves as many learners as any order can.
        taken = sorted((heapq.heappop(heap) for _ in range(classes_each)), key=lambda item: item[2])
        rows = []
        for negative_left, _, label in taken:
            start = len(pools[label]) + negative_left
            rows.append(pools[label][start : start + images_each])
            images_left = -negative_left - images_each
            if images_left >= images_each:
                heapq.heappush(heap, entry(label, images_left))
        shards.append(ShardIndices(tuple(label for _, _, label in taken), torch.stack(rows)))
    return tuple(shards)


def _learners_possible(portions: list[int], classes_each: int) -> int:
    """Return the largest n for which n learners can each have portions of `classes_each` classes.

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


def _ascending(pieces: list[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *pieces]).sort().values
