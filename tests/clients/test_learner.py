"""Task-learners: what leaves them, and what never does."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from local_grid import LocalGrid
from small_federation import federation
from torch.func import grad

from metaleak.clients import Episode, Partition, TaskShape, client_app
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.models import MLP, Conv4, LeNet
from metaleak.clients.rules import MAML, Reptile, anil, cross_entropy, first_order_maml
from metaleak.defenses import GaussianMechanism, Noise
from metaleak.server import MetaLearner


def test_no_image_and_no_label_is_in_any_message_of_a_run():
    """Every byte of every message is searched for every learner's images, as bytes and as floats."""
    everyone = federation(data=EmbeddedMNIST(), task=TaskShape(ways=5), partition=Partition(learners=12))
    grid = LocalGrid(client_app(everyone), nodes=2)
    initial = ArrayRecord({name: Array(value.numpy()) for name, value in everyone.initial_parameters().items()})
    MetaLearner(12, seed=1, chunk=6).start(grid, initial, num_rounds=2)
    wire = [
        b"".join(part.deflate() for part in get_all_nested_objects(message.content).values()) for message in grid.seen
    ]
    assert len(wire) == 8, "two rounds, two nodes, there and back"
    assert initial["head.weight"].numpy().tobytes() in wire[0], "or the search below sees nothing"
    images = everyone.examples().examples
    held = torch.cat([shard.examples.flatten() for shard in everyone.split().shards])
    for index in held.tolist():
        for trace, message in itertools.product(image_traces(images[index].numpy()), wire):
            assert trace not in message
    for message in grid.seen:
        assert set(message.content) <= {"arrays", "config", "metrics"}
        assert set(message.content.get("metrics", {})) <= {"num-examples"}
        assert set(message.content.get("config", {})) <= {"server-round", "learner-ids", "chunk"}


@pytest.mark.parametrize("defense", [None, "query", "inner", "shared"])
def test_a_message_of_several_episodes_is_the_mean_of_what_they_give(defense):
    noise = () if defense is None else (Noise(place=defense, scale=0.5),)
    several = TaskShape(ways=5, episodes_per_message=3)
    everyone = federation(data=EmbeddedMNIST(), task=several, defenses=noise, partition=Partition(learners=4))
    start = everyone.initial_parameters()
    learners = everyone.learners([3, 1])
    together, losses = cohort_meta_gradients(learners, start, round=2)
    for row, learner in enumerate(learners):
        alone, loss = learner.meta_gradient(start, 2)
        torch.testing.assert_close(losses[row], loss, rtol=1e-5, atol=1e-6)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][row], value, rtol=1e-4, atol=1e-6)
        if defense != "shared":
            batch = learner.episodes(2)
            assert len(batch.query_labels) == 3
            each = [
                everyone.rule.meta_gradient(
                    everyone.model, start, Episode(*(part[number] for part in batch)), learner.perturb(2, number)
                )[0]["head.weight"]
                for number in range(3)
            ]
            mean = torch.stack(each).mean(dim=0)
            torch.testing.assert_close(alone["head.weight"], mean.detach(), rtol=1e-5, atol=1e-7)
            assert not torch.allclose(each[0], each[1])


def image_traces(image):
    """The row with the most ink, in the types in which it could travel."""
    rows = image.reshape(image.shape[-2:])
    row = rows[(rows > 0).sum(axis=1).argmax()]
    assert (row > 0).sum() > 2
    return [value.astype(dtype).tobytes() for value in (row, row / np.float32(255)) for dtype in ("f4", "f8")] + [
        row.astype("u1").tobytes()
    ]


def test_the_search_would_find_an_image():
    image = EmbeddedMNIST().load().examples[0].numpy()
    assert any(trace in (image / np.float32(255)).astype("f4").tobytes() for trace in image_traces(image))


@pytest.mark.parametrize("model", [MLP(hidden=(8,)), LeNet(filters=3), Conv4(filters=4)], ids=str)
@pytest.mark.parametrize("rule", [MAML(), first_order_maml(), anil(), Reptile(inner_steps=2)], ids=str)
def test_a_cohort_computes_what_its_learners_compute_alone(model, rule):
    everyone = federation(model=model, rule=rule, data=EmbeddedMNIST(), task=TaskShape(ways=5))
    learners = [everyone.learner(number) for number in (7, 2, 5)]
    start = everyone.initial_parameters()
    together, losses = cohort_meta_gradients(learners, start, round=4, chunk=2)
    for row, learner in enumerate(learners):
        alone, loss = learner.meta_gradient(start, 4)
        torch.testing.assert_close(losses[row], loss, rtol=1e-5, atol=1e-6)
        whole, mine = (
            torch.cat([value.flatten() for value in g.values()])
            for g in ({name: v[row] for name, v in together.items()}, alone)
        )
        assert torch.linalg.norm(whole - mine) <= 5e-6 * torch.linalg.norm(mine)


def test_the_same_chunks_give_the_same_bits():
    everyone = federation()
    learners = [everyone.learner(number) for number in range(6)]
    start = everyone.initial_parameters()
    first, _ = cohort_meta_gradients(learners, start, 1, chunk=3)
    second, _ = cohort_meta_gradients(learners[:3], start, 1, chunk=3)
    assert all(torch.equal(first[name][:3], second[name]) for name in start)


@pytest.mark.parametrize("place", ["support", "query", "inner", "shared"])
def test_every_place_of_a_defense_changes_what_leaves_and_only_by_its_key(place):
    start = federation().initial_parameters()
    plain, _ = federation().learner(3).meta_gradient(start, 1)
    defended = federation(defenses=(Noise(place=place, scale=0.5),)).learner(3)
    once, _ = defended.meta_gradient(start, 1)
    again, _ = defended.meta_gradient(start, 1)
    other_round, _ = defended.meta_gradient(start, 2)
    name = "layer1.weight"
    assert not torch.allclose(once[name], plain[name], atol=1e-6)
    assert torch.equal(once[name], again[name])
    assert not torch.allclose(once[name], other_round[name], atol=1e-6)


def test_defenses_compose_in_order():
    class Double:
        place = "shared"

        def __call__(self, tensors, random):
            return {name: value * 2 for name, value in tensors.items()}

    class AddOne:
        place = "shared"

        def __call__(self, tensors, random):
            return {name: value + 1 for name, value in tensors.items()}

    start = federation().initial_parameters()
    plain, _ = federation().learner(0).meta_gradient(start, 1)
    both, _ = federation(defenses=(Double(), AddOne())).learner(0).meta_gradient(start, 1)
    torch.testing.assert_close(both["head.bias"], plain["head.bias"] * 2 + 1)


def test_noise_on_the_inner_gradients_moves_the_adapted_parameters():
    """With one inner step, noise n on its gradient moves theta by -rate * n; the meta-gradient is taken there."""

    class Shift:
        place = "inner"

        def __call__(self, tensors, random):
            return {name: value + 0.25 for name, value in tensors.items()}

    rule = first_order_maml(inner_rate=0.5)
    learner = federation(rule=rule, defenses=(Shift(),)).learner(0)
    start = learner.model.initialize((1, 8, 8), 3, torch.Generator().manual_seed(0))
    sent, _ = learner.meta_gradient(start, 1)
    adapted = rule.adapt(learner.model, start, learner.episode(1))
    moved = {name: value - 0.5 * 0.25 for name, value in adapted.items()}
    wanted = query_gradient(learner, moved)
    for name in start:
        torch.testing.assert_close(sent[name], wanted[name], rtol=1e-4, atol=1e-6)


def query_gradient(learner, parameters):
    episode = learner.episode(1)
    return grad(lambda p: cross_entropy(learner.model, p, episode.query_inputs, episode.query_labels))(parameters)


def test_a_learner_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=re.escape("learner 10 is not one of the 10 learners, 0 to 9")):
        federation().learner(10)


def test_a_secret_keys_the_noise_and_nothing_else():
    """Two nodes with secrets of their own, one of them asked twice, and a simulation that has the seed alone."""
    noise = GaussianMechanism(clip=1, noise_multiplier=1)
    start = federation().initial_parameters()
    made = [
        replace(federation(defenses=(noise,)), secret=secret).learner(0).meta_gradient(start, 1)[0]["head.bias"]
        for secret in (b"a" * 32, b"b" * 32, b"a" * 32, None)
    ]
    assert torch.equal(made[0], made[2])
    assert len({tuple(one.tolist()) for one in made}) == 3
    with_secret = replace(federation(), secret=b"a" * 32).learner(0)
    for theirs, ours in zip(with_secret.episode(1), federation().learner(0).episode(1), strict=True):
        assert torch.equal(theirs, ours)
    assert "secret" not in repr(replace(federation(), secret=b"a" * 32))
