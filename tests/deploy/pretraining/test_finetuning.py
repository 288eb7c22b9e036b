"""What finetuning changes, and what it leaves."""

import pytest
import torch

from metaleak.attacks.pretraining.training import Training, train
from metaleak.clients.models import MLP, Conv4
from metaleak.clients.randomness import keyed_generator
from metaleak.deploy.pretraining.finetuning import ReleasedModel, finetuned, with_new_head
from metaleak.deploy.pretraining.study import Finetuning

IMAGES = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


def released(model, **settings):
    starts = [model.initialize((1, 28, 28), 5, keyed_generator("start", one)) for one in range(2)]
    training = {"epochs": 2, "batch": 10, "momentum": 0.0}
    finetuning = Finetuning(**{"training": training, **settings})
    return starts, finetuned(
        model, starts, [IMAGES[:10]] * 2, IMAGES, LABELS, 3, finetuning, [(1, one) for one in range(2)]
    )


@pytest.mark.parametrize("private", [None, {"epsilon": 1.0, "steps": 2}])
def test_a_new_last_layer_leaves_the_rest_as_it_was(private):
    starts, found = released(MLP(hidden=(8,)), private=private)
    for start, (_, parameters) in zip(starts, found, strict=True):
        assert parameters["head.weight"].shape == (3, 8)
        assert torch.equal(parameters["layer1.weight"], start["layer1.weight"])
    _, whole = released(MLP(hidden=(8,)), moves="all", private=private)
    assert not torch.equal(whole[0][1]["layer1.weight"], starts[0]["layer1.weight"])


def test_a_new_last_layer_is_that_of_training_the_network_with_the_rest_held():
    model = MLP(hidden=(8,))
    starts, found = released(model)
    generator = keyed_generator(1, 0, "finetuning")
    places = torch.randperm(40, generator=generator)[None, :34]
    start = with_new_head(model, starts[0], (1, 28, 28), 3, generator)
    training = Training(epochs=2, batch=10, momentum=0.0)
    whole = train(model, [start], IMAGES, LABELS, places, training, [generator], frozenset(model.head))[0]
    for name, value in whole.items():
        assert torch.allclose(found[0][1][name], value, atol=1e-6)


@pytest.mark.parametrize("statistics", ["pretraining", "finetuning"])
def test_a_released_model_answers_each_image_by_itself(statistics):
    _, found = released(Conv4(filters=4), statistics=statistics)
    query = ReleasedModel(*found[0])
    together = query.predict(IMAGES[:6])
    assert torch.allclose(query.predict(IMAGES[2:3])[0], together[2], atol=1e-6)
    assert torch.allclose(together.sum(1), torch.ones(6, dtype=torch.float64))


def test_statistics_are_those_of_the_examples_that_were_chosen():
    answers = [
        ReleasedModel(*released(Conv4(filters=4), statistics=one)[1][0]).predict(IMAGES[:6])
        for one in ("pretraining", "finetuning")
    ]
    assert not torch.allclose(*answers, atol=1e-4)
