"""Who holds which image: nobody's image is anybody else's, and nobody's shard depends on those who come later."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from metaleak.clients.dealt_shards import ShardIndices
from metaleak.clients.partition import Partition, Split, TaskShape, _by_class, _Fullest, _InTurns, split

SMALL = TaskShape(ways=2)


def labels_of(sizes: list[int]) -> Tensor:
    """Shuffled labels with `sizes[c]` images of class c."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def same(one: ShardIndices, other: ShardIndices) -> bool:
    return one.classes == other.classes and torch.equal(one.examples, other.examples)


@st.composite
def deals(draw: st.DrawFn) -> tuple[Tensor, frozenset[int], Partition, int]:
    """Data, held-out classes, a partition (that may ask for too much) and a seed."""
    sizes = draw(st.lists(st.integers(0, 30), min_size=3, max_size=9).filter(any))
    held_out_classes = draw(st.frozensets(st.integers(0, len(sizes) - 1), max_size=1))
    partition = Partition(
        learners=draw(st.integers(1, 12)),
        classes_per_learner=draw(st.none() | st.integers(2, 4)),
        examples_per_class=draw(st.none() | st.integers(2, 5)),
        held_out=draw(st.sampled_from([0.0, 0.1, 0.33])),
        non_members=draw(st.sampled_from([0.0, 0.3, 0.5])),
    )
    return labels_of(sizes), held_out_classes, partition, draw(st.integers(0, 5))


def deal(data: tuple[Tensor, frozenset[int], Partition, int]) -> Split:
    """The split of `data`, for as many learners as it has images for (none: `hypothesis` tries again)."""
    labels, held_out_classes, partition, seed = data
    try:
        return split(labels, held_out_classes, partition, SMALL, seed)
    except ValueError as error:
        possible = int(str(error).rsplit(" ", 1)[1])
        assert possible < partition.learners
        if possible == 0:
            empty = torch.empty(0, dtype=torch.int64)
            return Split((), empty, empty)
        return split(labels, held_out_classes, partition.model_copy(update={"learners": possible}), SMALL, seed)


@given(deals())
def test_no_image_stands_in_two_places(data: tuple[Tensor, frozenset[int], Partition, int]) -> None:
    labels, held_out_classes, partition, _ = data
    dealt = deal(data)
    places = [shard.examples.flatten() for shard in dealt.shards] + [dealt.non_members, dealt.held_out]
    everything = torch.cat(places)
    assert everything.dtype == torch.int64
    assert len(set(everything.flatten().tolist())) == len(everything)
    for shard in dealt.shards:
        assert shard.examples.shape == (partition.classes_per_learner or 2, partition.examples_per_class or 2)
        assert list(shard.classes) == sorted(set(shard.classes))
        assert torch.equal(labels[shard.examples], torch.tensor(shard.classes)[:, None].expand_as(shard.examples))
        assert not held_out_classes & set(shard.classes)


@given(deals())
def test_the_fractions_are_of_every_class(data: tuple[Tensor, frozenset[int], Partition, int]) -> None:
    labels, held_out_classes, partition, _ = data
    dealt = deal(data)
    if not dealt.shards:
        return
    for label, count in enumerate(torch.bincount(labels).tolist()):
        kept, outside = (int((labels[part] == label).sum()) for part in (dealt.held_out, dealt.non_members))
        if label in held_out_classes:
            assert (kept, outside) == (count, 0)
        else:
            assert kept == (0 if held_out_classes else round(partition.held_out * count))
            assert outside == round(partition.non_members * count)


@given(deals())
def test_a_shard_does_not_depend_on_later_learners(
    data: tuple[Tensor, frozenset[int], Partition, int],
) -> None:
    labels, held_out_classes, partition, seed = data
    dealt = deal(data)
    for learners in range(1, len(dealt.shards)):
        fewer = partition.model_copy(update={"learners": learners})
        prefix = split(labels, held_out_classes, fewer, SMALL, seed)
        assert all(map(same, prefix.shards, dealt.shards[:learners]))
        assert torch.equal(prefix.non_members, dealt.non_members)
        assert torch.equal(prefix.held_out, dealt.held_out)


@given(deals())
def test_the_seed_alone_decides(data: tuple[Tensor, frozenset[int], Partition, int]) -> None:
    one, other = deal(data), deal(data)
    assert all(map(same, one.shards, other.shards))
    assert torch.equal(one.non_members, other.non_members)


def test_another_seed_deals_otherwise() -> None:
    labels = labels_of([40] * 6)
    one, other = (split(labels, frozenset(), Partition(learners=20), SMALL, seed) for seed in (0, 1))
    assert not all(map(same, one.shards, other.shards))
    assert not torch.equal(one.non_members, other.non_members)


def test_classes_are_used_evenly_and_in_all_combinations() -> None:
    dealt = split(labels_of([500] * 10), frozenset(), Partition(learners=199), TaskShape(ways=5), 0)
    used = torch.bincount(torch.tensor([shard.classes for shard in dealt.shards]).flatten(), minlength=10)
    assert used.max() - used.min() <= 1
    # Two learners in turn share out ten classes; the pairs must not be the same every time.
    assert len({shard.classes for shard in dealt.shards}) > 50


def test_the_last_image_can_be_dealt() -> None:
    # 6 + 2 + 2 images: only learners that all take the large class use everything.
    partition = Partition(learners=2, held_out=0, non_members=0)
    dealt = split(labels_of([4, 2, 2]), frozenset(), partition, SMALL, 0)
    assert all(0 in shard.classes for shard in dealt.shards)


def test_too_few_images_name_what_is_possible() -> None:
    labels = labels_of([20] * 10)
    with pytest.raises(ValueError, match=r"^100 learners with 5 classes x 2 images.*suffices for 12$") as raised:
        split(labels, frozenset(), Partition(learners=100), TaskShape(), 0)
    assert "\n" not in str(raised.value)
    assert len(split(labels, frozenset(), Partition(learners=12), TaskShape(), 0).shards) == 12


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (Partition(classes_per_learner=4), "classes_per_learner is 4, the task needs at least ways = 5"),
        (Partition(examples_per_class=2), "examples_per_class is 2, the task needs at least shots + queries = 3"),
    ],
)
def test_a_shard_smaller_than_the_task_is_refused(partition: Partition, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        split(labels_of([50] * 10), frozenset(), partition, TaskShape(shots=2), 0)


@pytest.mark.parametrize(
    "values",
    [
        {"learners": 0},
        {"held_out": 1.0},
        {"held_out": -0.1},
        {"held_out": 0.5, "non_members": 0.5},
        {"classes_per_learner": 1},
        {"learner": 3},
        {"non_members": float("nan")},
    ],
)
def test_bad_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Partition.model_validate(values)


@pytest.mark.parametrize("values", [{"ways": 1}, {"shots": 0}, {"queries": 0}])
def test_bad_task_shapes_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        TaskShape.model_validate(values)


@pytest.mark.parametrize(("classes", "images", "learners"), [(3856, 20, 4000), (10, 60000, 10000)])
def test_large_federations_are_dealt(classes: int, images: int, learners: int) -> None:
    labels = torch.arange(classes).repeat_interleave(images)
    dealt = split(labels, frozenset(), Partition(learners=learners), TaskShape(), 0)
    assert len(dealt.shards) == learners


def of_digits(**settings: object) -> Split:
    labels = labels_of([200] * 10)
    return split(labels, frozenset(), Partition(learners=12, held_out=0.1, **settings), TaskShape(ways=3), 7)  # type: ignore[arg-type]


def test_unequal_shards_have_sizes_between_the_two_and_no_image_of_another() -> None:
    dealt = of_digits(examples_per_class=2, most_examples_per_class=9)
    sizes = [shard.examples.shape[1] for shard in dealt.shards]
    assert 2 <= min(sizes) < max(sizes) <= 9
    held = torch.cat([shard.examples.flatten() for shard in dealt.shards])
    assert len(held) == len(held.unique())
    assert not torch.isin(held, torch.cat([dealt.non_members, dealt.held_out])).any()
    with pytest.raises(ValueError, match="most_examples_per_class is 3, every learner has at least 4"):
        of_digits(examples_per_class=4, most_examples_per_class=3)
    with pytest.raises(ValueError, match=r"12 learners with 3 classes x \d+ to \d+ images .* suffices for \d"):
        of_digits(examples_per_class=60, most_examples_per_class=120)


def test_an_overlap_is_held_by_two_learners_and_by_no_more_and_never_a_non_member() -> None:
    dealt = of_digits(examples_per_class=10, overlap=0.4)
    held, times = torch.cat([shard.examples.flatten() for shard in dealt.shards]).unique(return_counts=True)
    assert set(times.tolist()) == {1, 2}
    for shard in dealt.shards:
        assert len(shard.examples.flatten().unique()) == 30
    # The four images that a class's first learner shares with its second.
    first, second = [shard for shard in dealt.shards if shard.classes[0] == dealt.shards[0].classes[0]][:2]
    assert int(torch.isin(first.examples[0], second.examples[0]).sum()) == 4
    assert not torch.isin(held, torch.cat([dealt.non_members, dealt.held_out])).any()


def test_dirichlet_classes_are_skewed_and_each_learners_own() -> None:
    labels = labels_of([2000] * 10)

    def classes(concentration: float | None, learners: int = 200) -> list[tuple[int, ...]]:
        partition = Partition(learners=learners, dirichlet=concentration)
        return [shard.classes for shard in split(labels, frozenset(), partition, TaskShape(ways=2), 3).shards]

    drawn = classes(0.3)
    assert all(len(set(one)) == 2 for one in drawn)
    # Not dealt evenly: of the evenly dealt, every class is held by as many learners.
    counts, even = (torch.bincount(torch.tensor(one).flatten(), minlength=10) for one in (drawn, classes(None)))
    assert int(even.max() - even.min()) <= 1
    assert int(counts.max() - counts.min()) > 5
    assert classes(0.3, learners=50) == drawn[:50]
    with pytest.raises(ValueError, match="suffices for"):
        split(labels_of([6] * 10), frozenset(), Partition(learners=90, dirichlet=0.1), TaskShape(ways=2), 3)


def test_a_shard_is_made_when_it_is_asked_for_and_stays_for_a_while(monkeypatch):
    monkeypatch.setattr("metaleak.clients.dealt_shards._KEPT", 2)
    shards = split(torch.arange(400) % 10, frozenset(), Partition(learners=12), TaskShape(), 0).shards
    first = shards[0]
    assert shards[0] is first is shards[-12]
    assert [same(one, other) for one, other in zip(shards, shards[:], strict=True)] == [True] * 12
    assert shards[0] is not first
    assert same(shards[0], first)
    with pytest.raises(IndexError):
        shards[12]


@given(
    each=st.integers(2, 4),
    groups=st.integers(1, 4),
    size=st.integers(2, 6),
    step=st.integers(1, 6),
    turns=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_classes_of_one_size_are_dealt_to_any_learner_as_to_one_after_the_other(
    each: int, groups: int, size: int, step: int, turns: int, seed: int
) -> None:
    labels, images = range(each * groups), size + (turns - 1) * step
    left = dict.fromkeys(labels, images)
    one_by_one, at_once = _Fullest(left, seed), _InTurns(tuple(labels), images, step, each, seed)
    for learner in range(groups * turns):
        chosen = one_by_one(learner, each, size)
        assert at_once(learner) == (chosen, [images - left[label] for label in chosen])
        for label in chosen:
            left[label] -= step
        one_by_one.put_back(chosen)


def test_labels_of_many_classes_are_sorted_as_those_of_few() -> None:
    labels = torch.randint(0, 50, (2000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(_by_class(labels), torch.argsort(labels, stable=True))
    assert torch.equal(_by_class(labels * 1000), torch.argsort(labels, stable=True))
