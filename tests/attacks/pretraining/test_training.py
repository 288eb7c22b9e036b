"""Training several models in parallel, and the inputs of their classifiers."""

import pytest
import torch
import torch.nn.functional as F

from metaleak.attacks.pretraining.training import Training, augmented, features, linear_head, train
from metaleak.clients.models import MLP, Conv4, LeNet
from metaleak.clients.randomness import keyed_generator

IMAGES = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3
MODEL = MLP(hidden=(8,))
STARTS = [MODEL.initialize((1, 28, 28), 3, keyed_generator("start", one)) for one in range(3)]
PLACES = torch.stack([torch.randperm(40, generator=keyed_generator("places", one))[:25] for one in range(3)])


def generators():
    return [keyed_generator("order", one) for one in range(3)]


@pytest.mark.parametrize("augment", [False, True])
def test_a_model_does_not_depend_on_those_trained_with_it(augment):
    training = Training(epochs=3, batch=10, augment=augment)
    together = train(MODEL, STARTS, IMAGES, LABELS, PLACES, training, generators())
    alone = train(MODEL, STARTS[1:2], IMAGES, LABELS, PLACES[1:2], training, generators()[1:2])[0]
    for name, value in alone.items():
        assert torch.allclose(value, together[1][name], atol=1e-6)
        assert not torch.equal(value, STARTS[1][name])


def test_a_step_is_that_of_torchs_sgd():
    training = Training(epochs=1, batch=25, rate=0.1, momentum=0, weight_decay=0.01, schedule="constant")
    found = train(MODEL, STARTS[:1], IMAGES, LABELS, PLACES[:1], training, generators()[:1])[0]
    leaves = {name: value.clone().requires_grad_() for name, value in STARTS[0].items()}
    F.cross_entropy(MODEL(leaves, IMAGES[PLACES[0]]), LABELS[PLACES[0]]).backward()
    for name, value in leaves.items():
        expected = value - 0.1 * (value.grad + 0.01 * value)
        assert torch.allclose(found[name], expected, atol=1e-6)


def test_only_the_named_parameters_are_trained_and_rates_follow_their_schedule():
    moved = train(
        MODEL, STARTS[:1], IMAGES, LABELS, PLACES[:1], Training(epochs=1), generators()[:1], frozenset(MODEL.head)
    )
    assert {name for name in STARTS[0] if not torch.equal(moved[0][name], STARTS[0][name])} == set(MODEL.head)
    assert Training(epochs=4).rate_in(2) == pytest.approx(0.005)
    assert Training(schedule="step").rate_in(25) == pytest.approx(0.01 * 0.9**2)
    assert Training(schedule="constant").rate_in(99) == 0.01


@pytest.mark.parametrize("model", [MODEL, LeNet(), Conv4(filters=4)])
def test_features_are_the_inputs_of_the_classifier(model):
    parameters = model.initialize((1, 28, 28), 3, keyed_generator("features"))
    weight, bias = head = linear_head(model, parameters)
    found = features(model, parameters, head, IMAGES)
    logits = F.linear(found, parameters[weight], parameters[bias])
    assert torch.allclose(logits, model(parameters, IMAGES), atol=1e-5)


def test_an_augmented_image_is_the_image_flipped_or_shifted():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 8, 5] = 1
    places = set()
    for seed in range(60):
        found = augmented(image, keyed_generator(seed))
        assert found.shape == image.shape
        assert float(found.sum()) == 1
        row, column = divmod(int(found.flatten().argmax()), 16)
        places.add((row, column))
    assert {row for row, _ in places} == {6, 7, 8, 9, 10}
    assert {column for _, column in places} == {3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
