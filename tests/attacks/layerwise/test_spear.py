"""SPEAR recovers whole batches exactly, and support and query set of a second-order meta-gradient together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metaleak.attacks.attack import Reconstructs
from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.layerwise.batches.candidates import GradientRows, from_random_subsets
from metaleak.attacks.layerwise.batches.plausible_examples import from_plausible_examples
from metaleak.attacks.layerwise.batches.recovery import recover
from metaleak.attacks.layerwise.spear_attack import Spear
from metaleak.attacks.observation import Observation
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP, LeNet, TorchModule
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML, FedSGD, anil, batch_meta_gradients, first_order_maml

WAYS, LEARNERS = 5, 3
MODEL = MLP(hidden=(128, 32))


@pytest.fixture(scope="module")
def digits():
    """Real digits, two of each of five classes for every learner: `(L, 2, ways, 1, 28, 28)`."""
    found = EmbeddedMNIST().load()
    of_class = [found.examples[found.labels == label][: 2 * LEARNERS] for label in range(WAYS)]
    return (torch.stack(of_class).float() / 255).unflatten(1, (LEARNERS, 2)).permute(1, 2, 0, 3, 4, 5)


def observed(digits, rule, model=MODEL):
    labels = torch.arange(WAYS).expand(len(digits), -1)
    episodes = Episode(digits[:, 0], labels, digits[:, 1], labels)
    parameters = model.initialize((1, 28, 28), WAYS, keyed_generator("start"))
    gradients, _ = batch_meta_gradients(model, rule, parameters, episodes)
    return Observation(model, rule, parameters, gradients, WAYS, 1, 1, input_shape=(1, 28, 28))


def psnr(made, held):
    return similarity("image", made.examples.numpy(), held.numpy())[0].alike


@pytest.mark.parametrize("rule", [MAML(), MAML(inner_steps=2, inner_rate=0.1), anil()])
def test_a_second_order_meta_gradient_reveals_both_sets(digits, rule):
    observation = observed(digits, rule)
    made = Spear(asks="support").reconstruct(observation, seed=0)
    assert made.examples.shape == (LEARNERS, 2 * WAYS, 1, 28, 28)
    assert psnr(made, digits.flatten(1, 2)).min() > 40
    assert bool((made.confidence[:, :WAYS] == 1).all())
    assert bool((made.confidence[:, WAYS:] == 0.5).all())
    assert psnr(replace(made, examples=made.examples[:, :WAYS]), digits[:, 0]).min() > 40


def test_noisy_images_are_recovered_if_the_range_allows_them(digits):
    noise = torch.randn(digits[:1, 1].shape, generator=keyed_generator("noise"))
    held = torch.stack([digits[:1, 0], digits[:1, 1] + 0.3 * noise], dim=1)
    observation = observed(held, MAML())
    made = Spear(beyond=1.5).reconstruct(observation, seed=0)
    assert float((made.examples[0, :WAYS, None] - held[0, 1]).flatten(2).norm(dim=2).amin(dim=0).max()) < 0.1
    assert bool((made.confidence[:, :WAYS] == 1).all())


def test_unconfirmed_examples_have_less_confidence_than_confirmed_ones(digits, monkeypatch):
    observation = observed(digits, MAML())
    one = {name: value[:1] for name, value in observation.gradients.items()}
    monkeypatch.setattr("metaleak.attacks.layerwise.explanation._EXPLAINED", 0.0)
    made = Spear(asks="support").reconstruct(replace(observation, gradients=one), seed=0)
    assert 0 < made.confidence.max() <= 0.4
    # Adapted far enough, the sets are told apart: support examples fit the parameters that were sent.
    assert psnr(replace(made, examples=made.examples[:, :WAYS]), digits[:1, 0]).min() > 40


def test_a_first_order_meta_gradient_reveals_only_the_query_set(digits):
    observation = observed(digits, first_order_maml())
    made = Spear().reconstruct(observation, seed=0)
    assert psnr(made, digits[:, 1]).min() > 40
    assert made.confidence.max() <= 0.4, "the support set that adapted the parameters is unknown"
    with pytest.raises(ValueError, match=r"^spear: with a first-order rule the support set affects"):
        Spear(asks="support").reconstruct(observation, seed=0)


def test_a_plain_gradient_reveals_the_batch(digits):
    made = Spear().reconstruct(observed(digits, FedSGD()), seed=0)
    assert made.examples.shape == (LEARNERS, 2 * WAYS, 1, 28, 28)
    assert psnr(made, digits.flatten(1, 2)).min() > 40


def test_normalized_inputs_are_recovered_as_images(digits):
    class Normalized(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(784, 128), torch.nn.Linear(128, WAYS)

        def forward(self, images):
            return self.last(self.first(((images - 0.13) / 0.31).flatten(1)).relu())

    made = Spear().reconstruct(observed(digits, FedSGD(), TorchModule(Normalized())), seed=0)
    assert psnr(made, digits.flatten(1, 2)).min() > 40


def test_examples_that_are_not_found_are_gray_with_confidence_0(digits):
    """With noise far above float32's rounding nothing is recovered, and nothing is invented."""
    observation = observed(digits, MAML())
    noisy = {
        name: value + 0.1 * value.std() * torch.from_numpy(np.random.default_rng(0).normal(size=value.shape)).float()
        for name, value in observation.gradients.items()
    }
    made = Spear(samples=20_000).reconstruct(replace(observation, gradients=noisy), seed=0)
    assert made.confidence.max() < 0.5
    assert torch.isfinite(made.examples).all()
    silent = {name: torch.zeros_like(value) for name, value in observation.gradients.items()}
    made = Spear().reconstruct(replace(observation, gradients=silent), seed=0)
    assert bool((made.examples == 0.5).all())


def test_plausible_examples_yield_columns_that_random_subsets_do_not(digits):
    """With twenty images one subset in half a million yields a column, so none is tried if only one is allowed."""
    images, labels = digits[:2].flatten(0, 2), torch.arange(WAYS).repeat(4)
    parameters = MODEL.initialize((1, 28, 28), WAYS, keyed_generator("start"))
    episode = Episode(images[:WAYS], labels[:WAYS], images[WAYS:], labels[WAYS:])
    gradient, _ = FedSGD().meta_gradient(MODEL, parameters, episode)
    layers = [one[f"layer1.{part}"] for one in (gradient, parameters) for part in ("weight", "bias")]
    found = recover(*layers, 20, samples=1)
    assert found.fits
    held = images.flatten(1).double()
    assert float((found.inputs[:, None] - held).abs().amax(dim=2).amin(dim=0).max()) < 1e-3
    assert not recover(*layers, 20, samples=1, programs=0).complete


def test_the_last_missing_example_follows_from_the_columns_of_the_others():
    inputs, (gradient, bias_gradient, weight, bias) = drawn_layer(6)
    row_space = GradientRows.of(torch.cat([gradient, bias_gradient[:, None]], dim=1), 6)
    coordinates = torch.cat([inputs, torch.ones(6, 1, dtype=torch.float64)], dim=1) @ row_space.basis.mT
    columns = torch.linalg.inv(coordinates).mT
    sent = torch.cat([weight, bias[:, None]], dim=1)[row_space.live]
    ends = torch.zeros(40, dtype=torch.float64), torch.ones(40, dtype=torch.float64)
    found = from_plausible_examples(row_space, columns[:5], sent, *ends, 1, keyed_generator("objectives"))
    assert float((found.columns @ columns[5]).abs().max() / columns[5].norm()) == pytest.approx(1)
    far = torch.full((40,), 2.0, dtype=torch.float64)
    assert not len(
        from_plausible_examples(row_space, columns[:3], sent, far, far + 1, 4, keyed_generator("objectives")).columns
    )


def drawn_layer(examples):
    """Return random examples in [0, 1] and one layer's gradients, weight and bias, in float64."""
    generator = keyed_generator("layer")
    inputs = torch.rand(examples, 40, generator=generator, dtype=torch.float64)
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((60, 40), (60,)))
    slopes = torch.randn(examples, 60, generator=generator, dtype=torch.float64) * (inputs @ weight.mT + bias > 0)
    return inputs, (slopes.mT @ inputs, slopes.sum(dim=0), weight, bias)


def test_one_example_is_a_batch():
    inputs, layer = drawn_layer(1)
    found = recover(*layer, 1)
    assert torch.allclose(found.inputs, inputs, atol=1e-12)
    assert float(found.confidence) > 0.99


def test_no_more_subsets_are_tried_than_allowed_and_none_if_too_many_would_be_needed(monkeypatch):
    tried = []

    def counted(row_space, samples, generator):
        tried.append(samples)
        return from_random_subsets(row_space, samples, generator)

    monkeypatch.setattr("metaleak.attacks.layerwise.batches.recovery.from_random_subsets", counted)
    _, layer = drawn_layer(4)
    recover(*layer, 4, samples=500)
    # Out of their range, the examples do not end the search.
    recover(*layer, 4, low=2.0, high=3.0, samples=21_000, programs=0)
    assert tried == [500, 20_000, 1_000]
    # Of more than 24 examples no thousand subsets show a column, and more than 40 are not looked for.
    _, layer = drawn_layer(30)
    assert not recover(*layer, 30, samples=1_000).complete
    _, layer = drawn_layer(41)
    found = recover(*layer, 41)
    assert (len(found.inputs), found.complete, len(tried)) == (0, False, 3)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (MLP(hidden=(16,), activation="tanh"), "layer layer1 is followed by tanh, not by relu"),
        (LeNet(filters=2), "the model's first layer is not dense"),
    ],
)
def test_networks_without_a_dense_first_layer_and_relu_are_refused(digits, model, complaint):
    assert not Spear().applies_to(model)
    with pytest.raises(ValueError, match=complaint):
        Spear().reconstruct(observed(digits, MAML(), model), seed=0)


def test_it_is_an_attack():
    assert isinstance(Spear(), Reconstructs)
    assert Spear().applies_to(MODEL)
    assert Spear(**Spear(samples=10).model_dump()) == Spear(samples=10)
