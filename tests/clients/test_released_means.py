"""Rules computed from means over examples: the same function without clipping and noise, and nothing but means."""

import pytest
import torch
from small_federation import federation
from torch import Tensor

from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import MLP, Conv4, LeNet, Model
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import (
    MAML,
    FedAvg,
    FedMeNF,
    FedSGD,
    ReleasedMeans,
    Reptile,
    anil,
    batch_meta_gradients,
    first_order_maml,
    reads_means,
)
from metaleak.defenses import Noise, RandomSource, RecordLevel

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 3, 16
MODELS: dict[str, Model] = {
    "mlp": MLP(hidden=(8, 6), activation="tanh"),
    "linear": MLP(hidden=()),
    "lenet": LeNet(filters=3),
    "conv4": Conv4(filters=4, normalization="group"),
}
RULES = {
    "fomaml": first_order_maml(inner_steps=2, inner_rate=0.3),
    "maml": MAML(inner_steps=3, inner_rate=0.3),
    "anil": anil(inner_steps=2, inner_rate=0.3),
    "anil, first order": MAML(order=1, adapts="head", inner_rate=0.3),
    "reptile": Reptile(inner_steps=3, inner_rate=0.2),
    "fedsgd": FedSGD(),
    "fedavg": FedAvg(epochs=2, rate=0.2),
    "fedavg, in batches": FedAvg(epochs=2, batch=6, rate=0.2),
    "fedmenf": FedMeNF(inner_steps=2, inner_rate=0.3, gamma=0.7),
    "fedmenf, first order": FedMeNF(order=1, inner_rate=0.3),
}


def some_episode(seed: int = 0) -> Episode:
    def images(count: int, purpose: str) -> Tensor:
        return torch.rand(count, 1, SIDE, SIDE, dtype=torch.float64, generator=keyed_generator(seed, purpose))

    positions = torch.arange(WAYS)
    return Episode(
        images(WAYS * SHOTS, "support"),
        positions.repeat_interleave(SHOTS),
        images(WAYS * QUERIES, "query"),
        positions.repeat_interleave(QUERIES),
    )


def start(model: Model) -> Parameters:
    fresh = model.initialize((1, SIDE, SIDE), WAYS, keyed_generator("start"))
    return {name: value.double() for name, value in fresh.items()}


def means(mechanism: RecordLevel, seed: int = 0) -> ReleasedMeans:
    return ReleasedMeans(mechanism, lambda reading, step: RandomSource.of(seed, reading, step))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_without_clipping_and_noise_the_meta_gradient_is_the_rules_own(model, rule):
    """Second order included: the products with the Hessians are the derivative of the adaptation."""
    parameters, episode = start(model), some_episode()
    expected, loss = rule.meta_gradient(model, parameters, episode)
    open_means = means(RecordLevel(clip=1e12, noise_multiplier=0))
    found, same_loss = rule.released_meta_gradient(model, parameters, episode, open_means)
    torch.testing.assert_close(same_loss, loss)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_each_example_adds_at_most_its_clipping_norm(model):
    """A mean before and after one image is replaced by a wild one, in float64: 2 clip / n apart at most."""
    parameters, rule = start(model), FedSGD()
    one, other = some_episode(), some_episode()
    other.query_inputs[1] = 1e6 * torch.rand(1, SIDE, SIDE, generator=keyed_generator("wild"))
    clip, count = 0.25, WAYS * (SHOTS + QUERIES)
    sent = [
        rule.released_meta_gradient(model, parameters, episode, means(RecordLevel(clip=clip, noise_multiplier=0)))[0]
        for episode in (one, other)
    ]
    apart = torch.cat([(sent[0][name] - sent[1][name]).flatten() for name in parameters]).norm()
    assert 0 < apart <= 2 * clip / count


def test_an_example_whose_gradient_is_no_number_adds_nothing():
    model, rule = MODELS["mlp"], FedSGD()
    parameters, episode = start(model), some_episode()
    episode.support_inputs[0] = float("nan")
    found, _ = rule.released_meta_gradient(model, parameters, episode, means(RecordLevel(clip=1, noise_multiplier=0)))
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("name", RULES)
def test_a_rule_takes_the_means_that_it_states_and_no_noise_serves_twice(name):
    """The accounting rests on both."""
    rule, model, keys = RULES[name], MODELS["linear"], []

    def source(reading, step):
        keys.append((reading, step))
        return RandomSource.of(reading, step)

    released = ReleasedMeans(RecordLevel(noise_multiplier=1), source)
    rule.released_meta_gradient(model, start(model), some_episode(), released)
    assert len(set(keys)) == len(keys)
    counted = {reading: sum(key[0] == reading for key in keys) for reading, _ in keys}
    # Each example is in one of the three batches of an epoch.
    assert counted == {reading: count * (3 if reading == "batch" else 1) for reading, count in rule.readings.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_learner_draws_by_its_secret_key_round_and_number(name):
    mechanism = RecordLevel(noise_multiplier=1).for_readings(RULES[name].readings)
    everyone = federation(rule=RULES[name], defenses=(mechanism,))
    other = federation(rule=RULES[name], defenses=(mechanism,), secret=bytes(32))
    parameters = everyone.initial_parameters()

    def sent(of, learner, round):
        gradient = of.learner(learner).meta_gradient(parameters, round)[0]
        return torch.cat([value.flatten() for value in gradient.values()])

    assert torch.equal(sent(everyone, 0, 1), sent(everyone, 0, 1))
    assert not torch.equal(sent(everyone, 0, 1), sent(other, 0, 1))
    rows = torch.stack([sent(everyone, learner, round) for learner, round in ((0, 1), (0, 2), (1, 1))])
    correlation = torch.corrcoef(rows) - torch.eye(3)
    assert correlation.abs().max() < 0.2, "the noise outweighs the rest, and is not the same twice"


def test_a_cohort_computes_what_its_learners_compute_alone():
    mechanism = RecordLevel(noise_multiplier=1).for_readings({"support": 1, "query": 1})
    everyone = federation(rule=first_order_maml(), defenses=(mechanism,))
    parameters = everyone.initial_parameters()
    together, _ = cohort_meta_gradients(everyone.learners([3, 1]), parameters, 2)
    for row, number in enumerate((3, 1)):
        alone, _ = everyone.learner(number).meta_gradient(parameters, 2)
        assert all(torch.equal(together[name][row], value) for name, value in alone.items())


def hessian_reads_the_support_again(model, parameters, episode, mechanism, query_noise):
    """Return what second-order MAML would send were only its inner gradient private, and its query mean noisy."""
    rule = MAML(order=2, inner_rate=1.0)
    private = means(mechanism).gradient(
        model, parameters, frozenset(parameters), episode.support_inputs, episode.support_labels, "support"
    )
    sent, _ = rule.meta_gradient(
        model,
        parameters,
        episode,
        # The value of the private gradient, and the derivative of the true one, as automatic differentiation has it.
        lambda gradient, step: {name: value + (private[name] - value).detach() for name, value in gradient.items()},
    )
    return torch.cat([(value + query_noise).flatten() for value in sent.values()])


def test_post_processing_fails_for_second_order_and_a_mean_of_its_own_repairs_it():
    """Adapted parameters of the same private value, and yet two neighbors are told apart as far as one likes."""
    model, mechanism = MODELS["linear"], RecordLevel(clip=0.01, noise_multiplier=0)
    parameters = {name: torch.zeros_like(value) for name, value in start(model).items()}
    naive, repaired = [], []
    for size in (0.0, 10.0, 100.0):
        episode = some_episode()
        episode.support_inputs[0] *= size
        naive.append(hessian_reads_the_support_again(model, parameters, episode, mechanism, 0.0))
        sent, _ = MAML(inner_rate=1.0).released_meta_gradient(model, parameters, episode, means(mechanism))
        repaired.append(torch.cat([value.flatten() for value in sent.values()]))
    # The Hessian of one image grows with the square of its size, and no clipping of the gradient bounds it.
    assert (naive[1] - naive[0]).norm() > 1
    assert (naive[2] - naive[0]).norm() > 50 * (naive[1] - naive[0]).norm()
    count = len(some_episode().support_labels)
    # Its own mean is bounded, beside what the inner step, bounded as well, does to the query gradients.
    assert max((one - repaired[0]).norm() for one in repaired[1:]) <= 2 * 0.01 / count + 2 * 0.01


def test_what_has_no_means_is_refused_in_one_line():
    class WithoutMeans:
        """A rule whose meta-gradient is no function of means over examples."""

        meta_gradient = adapt = FedSGD.adapt

    with pytest.raises(ValueError, match=r"^rule: WithoutMeans has no released_meta_gradient"):
        reads_means(WithoutMeans())
    inner = federation(
        rule=FedSGD(), defenses=(RecordLevel(noise_multiplier=1).for_readings({"all": 1}), Noise(place="inner"))
    )
    with pytest.raises(ValueError, match=r"^defenses: a defense of the place 'inner' cannot be combined"):
        inner.learner(0).meta_gradient(inner.initial_parameters(), 1)


def test_a_batch_takes_the_means_of_each_learner():
    model, rule = MODELS["mlp"], first_order_maml()
    parameters = start(model)
    batch = Episode(*(torch.stack(parts) for parts in zip(some_episode(0), some_episode(1), strict=True)))
    mechanism = RecordLevel(clip=1e12, noise_multiplier=0)
    plain, _ = batch_meta_gradients(model, rule, parameters, batch)
    found, _ = batch_meta_gradients(model, rule, parameters, batch, means=[means(mechanism), means(mechanism)])
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)


class Bag(MLP):
    """Token numbers through an embedding, added up."""

    def initialize(self, input_shape, ways, generator):
        return {"embedding": torch.randn(20, ways, generator=generator)}

    def __call__(self, parameters, tokens):
        return parameters["embedding"][tokens].sum(1)


def test_the_contributions_of_token_sequences_are_clipped_and_not_lost():
    tokens, labels = torch.arange(12).reshape(4, 3), torch.tensor([0, 1, 2, 0])
    model = Bag()
    parameters = model.initialize((3,), WAYS, keyed_generator("bag"))
    episode = Episode(tokens[:0], labels[:0], tokens, labels)

    def released(clip):
        limited = means(RecordLevel(clip=clip, noise_multiplier=0))
        return FedSGD().released_meta_gradient(model, parameters, episode, limited)[0]

    clip = 0.01
    whole, found = released(1e6), released(clip)
    # No two sequences share a token, so that all four contributions, each of norm `clip`, are orthogonal.
    assert found["embedding"].norm().item() == pytest.approx(clip * 4**0.5 / 4, rel=1e-4)
    assert whole["embedding"].norm() > 10 * found["embedding"].norm()


def test_only_what_is_shared_is_clipped_and_sent():
    """First order: the mean is sent as it is. Second order computes with all of it."""
    model = MODELS["mlp"]
    parameters, episode = start(model), some_episode()
    body = frozenset(name for name in parameters if name.startswith("layer1"))
    mechanism = RecordLevel(clip=1e-6, noise_multiplier=0)
    part = ReleasedMeans(mechanism, lambda reading, step: RandomSource.of(reading, step), shares=("layer1.*",))
    found, _ = first_order_maml().released_meta_gradient(model, parameters, episode, part)
    whole, _ = first_order_maml().released_meta_gradient(model, parameters, episode, means(mechanism))
    assert set(found) == body
    sizes = [torch.cat([sent[name].flatten() for name in body]).norm() for sent in (found, whole)]
    assert sizes[0] > 1.2 * sizes[1], "the other parameters take no part of the clipping norm"
    assert set(MAML().released_meta_gradient(model, parameters, episode, part)[0]) == set(parameters)
