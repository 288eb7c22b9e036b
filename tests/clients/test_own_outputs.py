"""Noise on a first layer's outputs at a learner's own images: the same law as noise on its weight."""

from typing import ClassVar

import pytest
import torch
from scipy.stats import ks_2samp

from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP, Conv4
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML, FedMeNF, FedSGD, ReleasedMeans, Reptile, first_order_maml
from metaleak.clients.rules.own_outputs import OwnOutputs
from metaleak.defenses import DistributedRecordLevel, RandomSource, RecordLevel

WAYS, SIDE = 3, 8
SMALL = MLP(hidden=(9,))


class OnWeights(RecordLevel):
    """Promises nothing of its noise, which is therefore drawn for every entry of the weight."""


class Alone(MLP):
    """Promises its dense first layer alone, so that each example's gradient is formed."""

    @property
    def input_weight(self) -> str:
        return super().input_weight


def some_episode() -> Episode:
    """With a blank image, an image twice in the support set, and the same in the query set."""
    images = torch.rand(15, 1, SIDE, SIDE, dtype=torch.float64, generator=keyed_generator("images"))
    images[1], images[7], images[3] = images[0], images[0], 0.0
    labels = torch.arange(15) % WAYS
    return Episode(images[:6], labels[:6], images[6:], labels[6:])


def start(model):
    fresh = model.initialize((1, SIDE, SIDE), WAYS, keyed_generator("start"))
    return {name: value.double() for name, value in fresh.items()}


def means(mechanism, seed=0):
    return ReleasedMeans(mechanism, lambda reading, step: RandomSource.of(seed, reading, step))


@pytest.mark.parametrize(
    "model", [MLP(hidden=(9, 7), activation="tanh"), Alone(hidden=(9,)), MLP(hidden=())], ids=str
)
@pytest.mark.parametrize("rule", [first_order_maml(2), MAML(inner_steps=2), FedMeNF()], ids=str)
def test_without_noise_what_is_sent_is_the_same_clipping_included(model, rule):
    sent = [
        rule.released_meta_gradient(model, start(model), some_episode(), means(kind(clip=0.3, noise_multiplier=0)))[0]
        for kind in (RecordLevel, OnWeights)
    ]
    for name, value in sent[1].items():
        torch.testing.assert_close(sent[0][name], value, rtol=1e-7, atol=1e-10)


def test_the_noise_of_outputs_has_the_covariance_that_noise_on_the_weight_has():
    """In closed form: the step's rate and the noise's deviation, squared, times the images' products."""
    model, episode, rate, drawn = MLP(hidden=(), bias=False), some_episode(), 0.5, 2000
    parameters = {name: torch.zeros_like(value) for name, value in start(model).items()}
    mechanism = RecordLevel(clip=2.0, noise_multiplier=1.5)
    own = OwnOutputs.of(mechanism, model, parameters, frozenset(parameters), episode)
    support = own.episode.support_inputs, own.episode.support_labels
    rows = []
    for seed in range(drawn):
        *_, after = means(mechanism, seed).descent(
            model, own.outputs(parameters), *support, 1, rate, "support", own=own
        )
        rows.append(after["head.weight"])
    images = torch.cat([episode.support_inputs, episode.query_inputs]).flatten(1)
    expected = (rate * mechanism.standard_deviation("support", 6)) ** 2 * images @ images.mT
    found = torch.stack([torch.cov(torch.stack(rows)[:, way].mT) for way in range(WAYS)])
    sizes = expected.diagonal().sqrt()
    # Of a covariance of normal numbers: the deviation of what is found in so many draws.
    doubt = ((sizes[:, None] * sizes) ** 2 + expected**2).sqrt() / drawn**0.5
    assert ((found - expected).abs() <= 5 * doubt + 1e-12).all()
    across = torch.cov(torch.stack(rows)[:, :, 0].mT) - expected[0, 0] * torch.eye(WAYS)
    assert across.abs().max() <= 5 * 2**0.5 * expected[0, 0] / drawn**0.5, "units are independent"


@pytest.mark.parametrize(
    "rule", [first_order_maml(2, 1.0), MAML(inner_rate=1.0)], ids=["first order", "second order"]
)
def test_what_is_sent_has_the_same_distribution(rule):
    """Of two samples, with noise of the inner steps that outweighs that of the last mean by far."""
    model, episode = SMALL, some_episode()

    def sample(kind, first):
        mechanism = kind(support_clip=20.0, clip=0.5, noise_multiplier=0.2)
        sent = [
            rule.released_meta_gradient(model, start(model), episode, means(mechanism, seed))[0]
            for seed in range(first, first + 400)
        ]
        weights = torch.stack([one["layer1.weight"] for one in sent])
        heads = torch.stack([one["head.weight"] for one in sent])
        # Along images and across, of the first layer and of a later one, and of both together.
        along = weights @ episode.query_inputs.flatten(1).mT
        return (
            along[:, 0, 0],
            along[:, 4].norm(dim=1),
            weights[:, 2, 5],
            heads[:, 1, 3],
            along[:, 1, 2] * heads[:, 0, 1],
        )

    for one, other in zip(sample(RecordLevel, 0), sample(OnWeights, 10_000), strict=True):
        assert ks_2samp(one.numpy(), other.numpy()).pvalue > 0.001


class Spied(RecordLevel):
    """Keeps the shapes of the first weight's means."""

    isotropic_noise: ClassVar[bool] = True
    shapes: ClassVar[list] = []

    def noisy_mean(self, total, count, reading, random):
        self.shapes.append((reading, *next(iter(total.values())).shape))
        return super().noisy_mean(total, count, reading, random)


def shapes(rule, model=SMALL, episode=None, kind=Spied):
    Spied.shapes.clear()
    rule.released_meta_gradient(model, start(model), episode or some_episode(), means(kind(noise_multiplier=1)))
    return list(Spied.shapes)


def test_only_noise_that_is_never_sent_is_drawn_for_outputs():
    pixels, images = SIDE**2, 15
    assert shapes(first_order_maml(2)) == [("support", 9, images)] * 2 + [("query", 9, pixels)]
    assert shapes(MAML()) == [("support", 9, images), ("query", 9, pixels), ("curvature", 9, pixels)]
    assert shapes(Reptile(inner_steps=2)) == [("all", 9, pixels)] * 2
    assert shapes(FedSGD()) == [("all", 9, pixels)]


def test_noise_on_weights_where_outputs_do_not_serve():
    class Silent(Spied):
        """Inherits a promise, and does not make it."""

    pixels = SIDE**2
    assert shapes(first_order_maml(), kind=Silent)[0] == ("support", 9, pixels)
    few_units = shapes(first_order_maml(), MLP(hidden=(2,)))
    assert few_units[0] == ("support", 2, pixels), "the coordinates of 15 images would take longer"
    wild = some_episode()
    wild.support_inputs[2] = float("inf")
    assert shapes(first_order_maml(), episode=wild)[0] == ("support", 9, pixels)
    assert shapes(MAML(order=1, adapts="head"))[0][1:] == (WAYS, 9), "the first layer is not adapted"
    assert shapes(first_order_maml(), Conv4(filters=2, normalization="none"))[0][1] == 2
    assert vars(DistributedRecordLevel)["isotropic_noise"]
