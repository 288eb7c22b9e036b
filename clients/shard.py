"""The episode that a learner draws from its shard each round; the evaluation rebuilds it by the same functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from metaleak.clients.datasets.dataset import LabeledExamples
from metaleak.clients.dealt_shards import ShardIndices
from metaleak.clients.episode import Episode
from metaleak.clients.partition import TaskShape
from metaleak.clients.randomness import keyed_generator


@dataclass(frozen=True, eq=False)
class Draw:
    """The images of one episode, as int64 indices into the data set.

    `classes (ways,)`; `support (ways, shots)`; `query (ways, queries)`. Row p is label position p, with images of
    `classes[p]`. For a message of m episodes the sets are side by side, `(ways, m shots)` and `(ways, m queries)`; an
    image may be in several episodes.
    """

    classes: Tensor
    support: Tensor
    query: Tensor

    def parts(self, episodes: int) -> list["Draw"]:
        """Return the draws of a message's single episodes."""
        if episodes == 1:
            return [self]
        support, query = (torch.chunk(images, episodes, dim=1) for images in (self.support, self.query))
        return [Draw(self.classes, *sets) for sets in zip(support, query, strict=True)]


def draw(shard: ShardIndices, task: TaskShape, seed: int, learner: int, round: int) -> Draw:
    """Return the episode of `learner` in `round`, or all episodes of its message; a function of the arguments only.

    In a shard with exactly `ways` classes these have the same positions in every round; from a larger one `ways`
    classes are drawn each round, in random order. Likewise the split into support and query set is the same in every
    round if the shard has exactly `shots + queries` images per class; otherwise images are drawn without replacement
    each round. Raises `ValueError` when the shard is too small for the task.
    """
    held, images_each = shard.examples.shape
    needed = task.shots + task.queries
    if held < task.ways or images_each < needed:
        raise ValueError(
            f"a shard of {held} classes x {images_each} images is too small "
            f"for a task of {task.ways} ways x {needed} images"
        )
    # A choice whose key does not contain the round is the same in all rounds.
    class_key: tuple[int | str, ...] = (seed, learner, "positions")
    image_key: tuple[int | str, ...] = (seed, learner, "roles")
    if held > task.ways:
        class_key = (seed, round, learner, "positions")
    if images_each > needed:
        image_key = (seed, round, learner, "roles")
    drawn = [
        _drawn(shard, task, class_key, (*image_key, number) if number else image_key)
        for number in range(task.episodes_per_message)
    ]
    if len(drawn) == 1:
        return drawn[0]
    support, query = (torch.cat([getattr(one, which) for one in drawn], dim=1) for which in ("support", "query"))
    return Draw(drawn[0].classes, support, query)


# Cached, because drawing takes longer than a small network's meta-gradient.
@lru_cache(maxsize=16384)
def _drawn(
    shard: ShardIndices, task: TaskShape, class_key: tuple[int | str, ...], image_key: tuple[int | str, ...]
) -> Draw:
    rows = torch.randperm(len(shard.classes), generator=keyed_generator(*class_key))[: task.ways]
    shuffled = _shuffle_rows(shard.examples, keyed_generator(*image_key))[rows]
    return Draw(
        classes=torch.tensor(shard.classes)[rows],
        support=shuffled[:, : task.shots],
        query=shuffled[:, task.shots : task.shots + task.queries],
    )


def episode(data: LabeledExamples, draw: Draw) -> Episode:
    """Return the tensors of `draw`: float32 images in [0, 1], rows ordered by label position."""
    return Episode(*(part[0] for part in episodes(data, [draw])))


def episodes(data: LabeledExamples, draws: Sequence[Draw]) -> Episode:
    """Return the tensors of `draws`, all of one task shape, with a leading axis; see `episode`."""
    support, query = (torch.stack([getattr(draw, part) for draw in draws]) for part in ("support", "query"))
    positions = torch.arange(support.shape[1])

    def images(indices: Tensor) -> Tensor:
        flat = data.inputs(indices.flatten())
        return flat.reshape(len(draws), -1, *data.input_shape)

    def labels(indices: Tensor) -> Tensor:
        return positions.repeat_interleave(indices.shape[2]).expand(len(draws), -1)

    return Episode(images(support), labels(support), images(query), labels(query))


def held_out_episode(labels: Tensor, held_out: Tensor, task: TaskShape, seed: int, number: int) -> Draw:
    """Return evaluation task `number`, drawn from the images `held_out (m,)` of data with `labels (n,)`.

    The classes are drawn among those with at least `shots + queries` held-out images. Raises `ValueError`
    when fewer than `ways` have them.
    """
    needed = task.shots + task.queries
    held_labels = labels[held_out]
    eligible = torch.nonzero(torch.bincount(held_labels) >= needed).flatten()
    if len(eligible) < task.ways:
        raise ValueError(
            f"{len(eligible)} classes have {needed} held-out images, "
            f"an evaluation task needs {task.ways} such classes"
        )
    generator = keyed_generator(seed, number, "held out task")
    classes = eligible[torch.randperm(len(eligible), generator=generator)[: task.ways]]
    rows = []
    for label in classes:
        candidates = held_out[held_labels == label]
        rows.append(candidates[torch.randperm(len(candidates), generator=generator)[:needed]])
    images = torch.stack(rows)
    return Draw(classes=classes, support=images[:, : task.shots], query=images[:, task.shots :])


def _shuffle_rows(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return `values (rows, columns)` with every row in its own random order."""
    # NumPy sorts rows as short as these in a tenth of torch's time.
    order = torch.rand(values.shape, generator=generator, dtype=torch.float64).numpy().argsort(axis=1, kind="stable")
    return values.gather(1, torch.from_numpy(order))
