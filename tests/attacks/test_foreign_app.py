"""Attacks on the records of Flower apps that were not written for metaleak."""

import math
from statistics import median

import numpy as np
import pytest
import torch
from flower_apps.fedavg import MEAN, STD, run_app
from flower_apps.networks import initialized
from torch import nn

from metaleak.attacks.alignment.alignment import Alignment
from metaleak.attacks.attack import Targets
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.foreign_app import normalized, observed_app
from metaleak.attacks.observation import Update
from metaleak.attacks.span.span_test import SpanTest
from metaleak.clients.rules import FedAvg, FedSGD
from metaleak.server import Record

NON_MEMBERS = 40
"""A learner."""


class World:
    """One run of an app, its record, and targets."""

    def __init__(self, path, model, epochs, world="current"):
        self.truth = run_app(path / "record", model=model, epochs=epochs, world=world)
        self.record = Record(self.truth.record)
        self.update = Update.of_record(self.record, 1, holds="weights")
        self.module = initialized(model, 0)
        self.rule = FedAvg(epochs=epochs, batch=16, rate=0.1)
        self.images = self.truth.images * STD + MEAN
        others = np.random.default_rng(7).permutation(self.truth.outsiders)
        asked, self.own = np.split(others, [NON_MEMBERS * len(self.update.learners)])
        rows, examples, member = [], [], []
        for row, learner in enumerate(self.update.learners):
            held = self.truth.members[learner]
            free = asked[row * NON_MEMBERS :][:NON_MEMBERS].tolist()
            rows += [row] * (len(held) + NON_MEMBERS)
            examples += [*held, *free]
            member += [True] * len(held) + [False] * NON_MEMBERS
        self.targets = Targets(self.images[examples], torch.tensor(rows), self.truth.labels[examples])
        self.member = np.array(member)

    def observed(self, **changes):
        sizes = [len(self.truth.members[learner]) for learner in self.update.learners]
        given = {
            "update": self.update,
            "module": self.module,
            "rule": self.rule,
            "examples": int(median(sizes)),
            "input_shape": (1, 28, 28),
            "own": (self.images[self.own], self.truth.labels[self.own]),
            "mean": (MEAN,),
            "std": (STD,),
        }
        return observed_app(**{**given, **changes})

    def auc(self, attack):
        answers = attack(self.observed(), self.targets, seed=0)
        return evaluate(answers.scores.numpy(), self.member).auc.value


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return World(tmp_path_factory.mktemp("mlp"), "mlp", epochs=1)


def test_the_span_test_finds_the_members_of_an_mlp_after_one_local_epoch(mlp):
    assert mlp.auc(SpanTest()) >= 0.99
    assert mlp.auc(SpanTest(coefficients="free")) >= 0.99


def test_it_finds_them_after_five_local_epochs_and_without_names(tmp_path):
    classic = World(tmp_path, "mlp", epochs=5, world="classic")
    assert set(classic.update.sent) == {"0", "1", "2", "3"}
    assert set(classic.observed().parameters) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert classic.auc(SpanTest()) >= 0.99


def test_alignment_finds_the_members_of_a_convolutional_network(tmp_path):
    cnn = World(tmp_path, "cnn", epochs=1)
    light = Alignment(knows_defenses=False, samples=300, shadows=8, stand_ins=1)
    assert cnn.auc(light) >= 0.9


def test_gradients_are_the_sum_of_the_local_ones(mlp):
    observed = mlp.observed()
    assert torch.equal(
        observed.gradients["fc2.bias"], (mlp.update.sent["fc2.bias"] - mlp.update.received["fc2.bias"]) / 0.1
    )
    assert observed.ways == 10
    assert observed.shots + observed.queries == 6  # 60 examples of ten classes


def test_a_normalized_module_keeps_its_parameter_names(mlp):
    wrapped = normalized(mlp.module, (MEAN,), (STD,))
    images = mlp.images[:5]
    torch.testing.assert_close(wrapped(images), mlp.module((images - MEAN) / STD))
    assert dict(wrapped.named_parameters()).keys() == dict(mlp.module.named_parameters()).keys()
    with pytest.raises(
        ValueError, match=r"mean and std must have the same length, and std be above 0, got \[0.5\] and \[0.0\]"
    ):
        normalized(mlp.module, (0.5,), (0.0,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"module": nn.Sequential(nn.Flatten(), nn.Linear(784, 10))},
            "'1.weight' is not in the record, whose arrays are fc1",
        ),
        ({"rule": FedSGD()}, "replies hold weights: the rule must have a local learning rate, as fedavg has"),
        ({"input_shape": (3, 32, 32)}, r"cannot take examples of shape \(3, 32, 32\)"),
    ],
)
def test_arguments_that_do_not_fit_the_record_are_named(mlp, changes, said):
    with pytest.raises(ValueError, match=said):
        mlp.observed(**changes)


def test_a_model_of_other_shapes_is_named(mlp):
    narrow = initialized("mlp", 0)
    narrow.fc1 = nn.Linear(784, 3)
    with pytest.raises(ValueError, match=r"'fc1.weight' has the shape \(3, 784\), but \(256, 784\) in the record"):
        mlp.observed(module=narrow)


def test_scores_are_finite(mlp):
    answers = SpanTest()(mlp.observed(), mlp.targets, seed=0)
    assert all(math.isfinite(score) for score in answers.scores.tolist())
