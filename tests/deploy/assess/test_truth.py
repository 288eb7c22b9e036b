"""The truth: members are held, non-members never are, both have the same classes."""

import pytest
import torch

from metaleak.attacks.evaluation.membership import evaluate
from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.datasets import EmbeddedMNIST, MadeUpSentences
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.deploy.assess.truth import ask, held_inputs, held_lengths
from metaleak.deploy.config.experiment import TargetSettings

LEARNERS = list(range(0, 30, 2))


@pytest.fixture(scope="module")
def federation():
    return Federation(
        seed=2,
        data=EmbeddedMNIST(),
        task=TaskShape(ways=5, shots=2, queries=3),
        partition=Partition(learners=30),
        model=MLP(),
        rule=MAML(),
    )


@pytest.mark.parametrize("asks", ["query", "support"])
def test_members_are_in_the_set_that_is_asked_about_and_non_members_in_nobodys(federation, asks):
    truth = ask(federation, LEARNERS, 1, asks, TargetSettings(members=60, non_members=80))
    held_by_anyone = set(torch.cat([shard.examples.flatten() for shard in federation.split().shards]).tolist())
    assert (int(truth.member.sum()), int((~truth.member).sum())) == (60, 80)
    for learner, position, image, label, held, member in zip(
        *(values.tolist() for values in (truth.learner, truth.position, truth.example, truth.label, truth.held)),
        truth.member.tolist(),
        strict=True,
    ):
        drawn = federation.learner(learner).drawn(1)
        asked, other = (drawn.query, drawn.support) if asks == "query" else (drawn.support, drawn.query)
        assert held in asked[position].tolist()
        assert label == int(drawn.classes[position]) == int(federation.examples().labels[image])
        if member:
            assert image == held
            assert image not in other.flatten().tolist()
        else:
            assert image not in held_by_anyone
            assert image not in federation.split().held_out.tolist()


def test_members_and_non_members_have_the_same_classes_and_learners(federation):
    truth = ask(federation, LEARNERS, 1, "query", TargetSettings(members=50, non_members=50))
    for values in (truth.label, truth.learner, truth.position):
        assert torch.equal(values[truth.member].sort().values, values[~truth.member].sort().values)


def test_the_order_of_the_targets_says_nothing_about_membership(federation):
    truth = ask(federation, LEARNERS, 1, "query", TargetSettings(members=200, non_members=200))
    auc = evaluate(-torch.arange(len(truth.member)).float().numpy(), truth.member.numpy()).auc
    assert auc.low < 0.5 < auc.high


def test_no_image_is_asked_about_twice_however_many_are_wanted(federation):
    truth = ask(federation, LEARNERS, 1, "query", TargetSettings(members=10_000, non_members=10_000))
    members, non_members = truth.example[truth.member], truth.example[~truth.member]
    assert len(members) == len(set(members.tolist())) == 15 * 5 * 3
    assert len(non_members) == len(set(non_members.tolist())) <= len(federation.split().non_members)
    assert len(non_members) > 1000


def test_the_same_question_twice_is_the_same(federation):
    settings = TargetSettings(members=20, non_members=20)
    once, again = (ask(federation, LEARNERS, 1, "query", settings) for _ in range(2))
    assert torch.equal(once.example, again.example)
    assert not torch.equal(once.example, ask(federation, LEARNERS, 2, "query", settings).example)


def test_an_attack_sees_images_rows_and_positions_only(federation):
    truth = ask(federation, LEARNERS, 1, "query", TargetSettings(members=5, non_members=5))
    targets = truth.targets(federation, LEARNERS)
    assert set(vars(targets)) == {"examples", "rows", "positions"}
    assert [LEARNERS[row] for row in targets.rows.tolist()] == truth.learner.tolist()
    assert targets.examples.shape == (10, 1, 28, 28)


def test_the_other_set_is_ordered_like_the_episode(federation):
    known = held_inputs(federation, [4, 6], 1, "query")
    assert torch.equal(known[1], federation.learner(6).episode(1).query_inputs)


def test_without_outsiders_there_are_no_non_members(federation):
    bare = Federation(**{**vars(federation), "partition": Partition(learners=5, non_members=0.0)})
    with pytest.raises(ValueError, match=r"no learner holds; raise partition\.non_members"):
        ask(bare, [0, 1], 1, "query", TargetSettings())


def test_lengths_are_those_of_the_support_sets_sentences_and_then_the_query_sets():
    federation = Federation(
        seed=2,
        data=MadeUpSentences(length=12),
        task=TaskShape(ways=2, shots=1, queries=2),
        partition=Partition(learners=3),
        model=MLP(),
        rule=MAML(),
    )
    lengths = held_lengths(federation, [2, 0], 1)
    assert lengths.shape == (2, 6)
    sentences = torch.cat([held_inputs(federation, [2, 0], 1, which) for which in ("support", "query")], dim=1)
    present = torch.arange(12) < lengths[..., None]
    assert torch.equal(sentences != federation.examples().padding, present)
    assert len(set(lengths.flatten().tolist())) > 1
