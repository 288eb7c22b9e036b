"""The Cocktail Party Attack: images from one gradient and from the mean of several, and membership."""

import pytest
import torch
from membership_questions import held_inputs, questions

from metaleak.attacks.attack import AsksMembership, Reconstructs
from metaleak.attacks.cocktail.cocktail_party import CocktailParty, correlations
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.observation import Observation
from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.models import MLP, LeNet, TorchModule
from metaleak.clients.rules import MAML, first_order_maml

ATTACK = CocktailParty(iterations=300, restarts=2)


def federation(rule=None, model=None, ways=4):
    return Federation(
        seed=5,
        data=EmbeddedMNIST(),
        task=TaskShape(ways=ways, shots=1, queries=1),
        partition=Partition(learners=2, held_out=0.2),
        model=model or MLP(hidden=(64,)),
        rule=rule or MAML(),
    )


def observed(made: Federation, together: bool = False) -> Observation:
    parameters = made.initial_parameters()
    gradients, _ = cohort_meta_gradients(made.learners([0, 1]), parameters, 1)
    if together:
        gradients = {name: value.mean(dim=0).expand(2, *value.shape[1:]) for name, value in gradients.items()}
    task = made.task
    shape, mean_of = made.examples().input_shape, 2 if together else 1
    seen = made.model, made.rule, parameters, gradients, task.ways, task.shots, task.queries
    return Observation(*seen, mean_of=mean_of, input_shape=shape)


def psnr(made, held):
    return similarity("image", made.numpy(), held.numpy())[0].alike


def test_one_gradient_reveals_support_and_query_images():
    made = federation()
    found = ATTACK.reconstruct(observed(made), seed=0)
    assert isinstance(ATTACK, Reconstructs)
    assert found.examples.shape == (2, 8, 1, 28, 28)
    for which in ("query", "support"):
        assert (psnr(found.examples, held_inputs(made, [0, 1], 1, which)) > 30).mean() > 0.85
    assert found.confidence.min() >= 0
    assert found.confidence.max() <= 1
    assert found.confidence.median() > 0.95


def test_a_mean_reveals_the_images_of_all_learners_and_is_unmixed_once():
    made = federation()
    calls = []
    found = ATTACK.reconstruct(observed(made, together=True), seed=0, progress=lambda *done: calls.append(done))
    assert found.examples.shape == (2, 16, 1, 28, 28)
    assert torch.equal(*found.examples)
    assert calls == [(1, 2), (2, 2)]
    held = torch.cat([held_inputs(made, [0, 1], 1, which) for which in ("query", "support")], dim=1)
    assert (psnr(found.examples, held) > 30).mean() > 0.6


@pytest.mark.parametrize("together", [False, True])
def test_a_member_correlates_with_a_source(together):
    made = federation()
    targets, member = questions(made, [0, 1], 1, "query", 8, 200)
    assert isinstance(ATTACK, AsksMembership)
    answers = ATTACK(observed(made, together), targets, seed=0)
    assert evaluate(answers.scores.numpy(), member.numpy(), resamples=1).auc.value > 0.85
    certain = answers.scores > 0.99
    assert torch.equal(certain & ~member, torch.zeros_like(member))
    assert (answers.reconstructions - targets.examples)[certain].abs().max() < 0.25


def test_a_first_order_rule_mixes_only_the_query_set():
    found = ATTACK.reconstruct(observed(federation(first_order_maml())), seed=0)
    assert found.examples.shape == (2, 4, 1, 28, 28)


def test_images_that_the_model_normalizes_are_recovered_without_normalization():
    class Normalized(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(784, 64), torch.nn.Linear(64, 4)

        def forward(self, images):
            return self.last(self.first(((images - 0.13) / 0.31).flatten(1)).relu())

    made = federation(model=TorchModule(Normalized()))
    found = ATTACK.reconstruct(observed(made), seed=0)
    assert (psnr(found.examples, held_inputs(made, [0, 1], 1, "query")) > 30).mean() > 0.6


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nothing_is_found_in_a_gradient_that_is_not_finite(value):
    made = federation()
    broken = observed(made)
    broken.gradients["layer1.weight"][0, 3, 5] = value
    quick = CocktailParty(iterations=2, restarts=0)
    found = quick.reconstruct(broken, seed=0)
    assert not found.confidence[0].any()
    assert (found.examples[0] == 0.5).all()
    targets, _ = questions(made, [0, 1], 1, "query", 8, 20)
    answers = quick(broken, targets, seed=0)
    assert not answers.scores[targets.rows == 0].any()
    assert answers.scores[targets.rows == 1].all()


def test_a_gradient_of_zeros_has_no_sources_and_a_model_without_a_dense_first_layer_is_refused():
    silent = observed(federation())
    silent.gradients["layer1.weight"][0], silent.gradients["layer1.bias"][0] = 0.0, 0.0
    found = ATTACK.reconstruct(silent, seed=0)
    assert not found.confidence[0].any()
    assert (found.examples[0] == 0.5).all()
    made = federation(model=LeNet())
    assert not ATTACK.applies_to(made.model)
    with pytest.raises(ValueError, match=r"^cocktail-party: the first layer of LeNet is not dense$"):
        ATTACK.reconstruct(observed(made), seed=0)


def test_correlations_ignore_scale_sign_and_offset():
    one = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)).double()
    found = correlations(one, torch.cat([-2 * one + 0.3, torch.ones(1, 50)]))
    assert torch.allclose(found.diagonal(), torch.ones(3).double())
    assert not found[:, 3].any()
