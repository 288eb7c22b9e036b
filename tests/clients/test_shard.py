"""What a learner draws, and that the evaluation can draw the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaleak.clients.datasets import LabeledExamples
from metaleak.clients.dealt_shards import ShardIndices
from metaleak.clients.partition import TaskShape
from metaleak.clients.shard import Draw, draw, episode, held_out_episode


def shard_of(classes: int, images: int) -> ShardIndices:
    """A shard of classes 10, 11, ... whose image of column j in class c has the index 100 * c + j."""
    labels = tuple(range(10, 10 + classes))
    return ShardIndices(labels, torch.tensor(labels)[:, None] * 100 + torch.arange(images))


def equal(one: Draw, other: Draw) -> bool:
    return (
        torch.equal(one.classes, other.classes)
        and torch.equal(one.support, other.support)
        and torch.equal(one.query, other.query)
    )


@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(0, 3), st.integers())
def test_a_draw_is_a_task_of_the_shard(
    ways: int, shots: int, queries: int, more_classes: int, more_images: int, seed: int
) -> None:
    shard = shard_of(ways + more_classes, shots + queries + more_images)
    task = TaskShape(ways=ways, shots=shots, queries=queries)
    drawn = draw(shard, task, seed, learner=3, round=7)
    assert drawn.classes.shape == (ways,)
    assert drawn.support.shape == (ways, shots)
    assert drawn.query.shape == (ways, queries)
    images = torch.cat([drawn.support, drawn.query], dim=1)
    assert torch.equal(images // 100, drawn.classes[:, None].expand_as(images))
    assert len(set(images.flatten().tolist())) == ways * (shots + queries)
    assert bool(torch.isin(images, shard.examples).all())
    assert equal(drawn, draw(shard, task, seed, learner=3, round=7))


def test_a_shard_that_just_fits_plays_the_same_episode_in_every_round() -> None:
    task = TaskShape(ways=5, shots=2, queries=3)
    first = draw(shard_of(5, 5), task, 0, learner=4, round=1)
    assert all(equal(first, draw(shard_of(5, 5), task, 0, learner=4, round=number)) for number in range(2, 9))
    others = [draw(shard_of(5, 5), task, 0, learner=learner, round=1) for learner in range(8)]
    assert len({tuple(other.classes.tolist()) for other in others}) > 1
    assert not equal(first, draw(shard_of(5, 5), task, 1, learner=4, round=1))


def test_a_message_of_several_episodes_has_their_images_side_by_side() -> None:
    once, thrice = TaskShape(ways=3, queries=2), TaskShape(ways=3, queries=2, episodes_per_message=3)
    for spare in (0, 7):
        message = draw(shard_of(3, 3 + spare), thrice, 0, learner=2, round=5)
        parts = message.parts(3)
        assert equal(parts[0], draw(shard_of(3, 3 + spare), once, 0, learner=2, round=5))
        assert all(torch.equal(part.classes, parts[0].classes) for part in parts)
        assert len({tuple(part.query.flatten().tolist()) for part in parts}) == 3
        assert message.query.shape == (3, 6)
        for part in parts:
            images = torch.cat([part.support, part.query], dim=1)
            assert len(set(images.flatten().tolist())) == 9
            assert torch.equal(images // 100, part.classes[:, None].expand_as(images))
    lasting, other = (draw(shard_of(3, 3), thrice, 0, learner=2, round=number) for number in (1, 2))
    assert equal(lasting, other)


def test_spare_images_change_the_sets_and_not_the_positions() -> None:
    task = TaskShape(ways=5)
    draws = [draw(shard_of(5, 10), task, 0, learner=0, round=number) for number in range(30)]
    assert len({tuple(drawn.classes.tolist()) for drawn in draws}) == 1
    assert len({tuple(drawn.support.flatten().tolist()) for drawn in draws}) == 30


def test_spare_classes_are_all_played_and_keep_their_roles() -> None:
    task = TaskShape(ways=2)
    draws = [draw(shard_of(4, 2), task, 0, learner=0, round=number) for number in range(60)]
    assert len({tuple(drawn.classes.tolist()) for drawn in draws}) == 12
    roles = {int(image) for drawn in draws for image in drawn.support.flatten()}
    assert len(roles) == 4


def test_every_image_comes_to_both_sets() -> None:
    draws = [draw(shard_of(2, 4), TaskShape(ways=2), 0, learner=0, round=number) for number in range(60)]
    for images in ([drawn.support for drawn in draws], [drawn.query for drawn in draws]):
        assert len(set(torch.stack(images).flatten().tolist())) == 8


@pytest.mark.parametrize("shard", [shard_of(4, 2), shard_of(5, 1)])
def test_a_shard_too_small_for_the_task_is_refused(shard: ShardIndices) -> None:
    with pytest.raises(ValueError, match="too small for a task of 5 ways x 2 images"):
        draw(shard, TaskShape(), 0, 0, 0)


def test_an_episode_is_ordered_by_position() -> None:
    images = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 2, 2) * 20
    data = LabeledExamples(images, torch.arange(12) // 6, ("a", "b"))
    drawn = Draw(torch.tensor([1, 0]), torch.tensor([[7, 6], [1, 0]]), torch.tensor([[11], [5]]))
    task = episode(data, drawn)
    assert task.support_inputs.dtype == task.query_inputs.dtype == torch.float32
    assert task.support_inputs.shape == (4, 3, 2, 2)
    assert torch.equal(task.support_inputs[:, 0, 0, 0], torch.tensor([140, 120, 20, 0]) / 255)
    assert task.query_inputs.shape == (2, 3, 2, 2)
    assert task.support_labels.tolist() == [0, 0, 1, 1]
    assert task.query_labels.tolist() == [0, 1]
    assert task.query_labels.dtype == torch.int64
    assert float(task.query_inputs.max()) <= 1


def test_evaluation_tasks_use_held_out_images_of_large_enough_classes() -> None:
    labels = torch.arange(6).repeat_interleave(10)
    held_out = torch.cat(
        [torch.arange(10 * label, 10 * label + count) for label, count in enumerate([3, 4, 5, 2, 0])]
    )
    task = TaskShape(ways=2, shots=1, queries=2)
    tasks = [held_out_episode(labels, held_out, task, 0, number) for number in range(60)]
    for drawn in tasks:
        images = torch.cat([drawn.support, drawn.query], dim=1)
        assert bool(torch.isin(images, held_out).all())
        assert torch.equal(labels[images], drawn.classes[:, None].expand_as(images))
        assert len(set(images.flatten().tolist())) == 6
    assert len({tuple(drawn.classes.tolist()) for drawn in tasks}) == 6
    assert equal(tasks[3], held_out_episode(labels, held_out, task, 0, 3))
    with pytest.raises(ValueError, match=r"^3 classes have 3 held-out images, an evaluation task needs 4 such"):
        held_out_episode(labels, held_out, TaskShape(ways=4, shots=1, queries=2), 0, 0)
