"""The exact likelihood ratio equals that of the noise's densities, and attains what the mechanism allows."""

import math

import pytest
import torch
from torch.distributions import Laplace, Normal

from metaleak.attacks.attack import Targets
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.likelihood_ratio import LikelihoodRatio
from metaleak.attacks.observation import Observation, Rest
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML
from metaleak.defenses import (
    NO_NOISE,
    AddedNoise,
    GaussianMechanism,
    Noise,
    Pruning,
    Quantization,
    RandomSource,
    SecureAggregation,
    Selection,
    Sign,
)
from metaleak.defenses.gaussian_mechanism import clipped

WAYS, SHOTS, QUERIES, SIZE = 2, 2, 3, 6
MODEL, RULE = MLP(hidden=(5,)), MAML()
PARAMETERS = MODEL.initialize((1, SIZE, SIZE), WAYS, keyed_generator(1))


def gradient(support, query):
    labels = (torch.arange(WAYS).repeat_interleave(each) for each in (SHOTS, QUERIES))
    support_labels, query_labels = labels
    return RULE.meta_gradient(MODEL, PARAMETERS, Episode(support, support_labels, query, query_labels))[0]


def federation(defenses, asks="query", learners=60, seed=0, mean_of=1):
    """Random images and two targets per learner: one is held and its alternative is not, and vice versa."""
    generator = keyed_generator(seed)
    support, query = (
        torch.rand(learners, WAYS * each, 1, SIZE, SIZE, generator=generator) for each in (SHOTS, QUERIES)
    )
    sent = []
    for learner in range(learners):
        tensors = gradient(support[learner], query[learner])
        for order, defense in enumerate(defenses):
            tensors = defense(tensors, RandomSource.of(seed, learner, order))
        sent.append(tensors)
    asked = (query if asks == "query" else support).repeat_interleave(2, dim=0)
    slots = torch.randint(asked.shape[1], (2 * learners,), generator=generator)
    here = torch.arange(2 * learners)
    held = asked[here, slots]
    others = torch.rand(held.shape, generator=generator)
    member = here % 2 == 0
    choose = member[:, None, None, None]
    asked = asked.clone()
    asked[here, slots] = 0
    rest = Rest(asked, slots, torch.where(choose, others, held))
    known = {"known_support": support} if asks == "query" else {"known_query": query}
    stacked = {name: torch.stack([one[name] for one in sent]) for name in PARAMETERS}
    each = QUERIES if asks == "query" else SHOTS
    return (
        Observation(
            MODEL,
            RULE,
            PARAMETERS,
            stacked,
            WAYS,
            SHOTS,
            QUERIES,
            defenses=defenses,
            rest=rest,
            mean_of=mean_of,
            **known,
        ),
        Targets(torch.where(choose, held, others), here // 2, slots // each),
        member,
    )


def flat(tensors):
    return torch.cat([value.flatten() for value in tensors.values()]).double()


def density(seen, mean, defense):
    """The log-likelihood ratio by torch's own distributions."""
    if isinstance(defense, GaussianMechanism):
        return Normal(flat(clipped(mean, defense.clip)), defense.standard_deviation).log_prob(seen).sum()
    vector = flat(mean)
    deviation = defense.scale * vector.square().mean().sqrt()
    if defense.law == "laplace":
        return Laplace(vector, deviation / math.sqrt(2)).log_prob(seen).sum()
    return Normal(vector, deviation).log_prob(seen).sum()


@pytest.mark.parametrize("asks", ["query", "support"])
@pytest.mark.parametrize(
    "noise",
    [
        GaussianMechanism(clip=0.1, noise_multiplier=0.5),
        Noise(scale=0.3),
        Noise(scale=0.3, law="laplace"),
    ],
)
def test_a_score_is_the_ratio_of_the_two_densities(noise, asks):
    observation, targets, _ = federation((noise,), asks, learners=6)
    answers = LikelihoodRatio(asks=asks, chunk=5)(observation, targets, 0)
    for row, learner in enumerate(targets.rows.tolist()):
        seen = flat({name: value[learner] for name, value in observation.gradients.items()})
        ratio = 0
        for sign, image in ((1, targets.examples[row]), (-1, observation.rest.alternatives[row])):
            whole = observation.rest.images[row].clone()
            whole[observation.rest.slots[row]] = image
            if asks == "query":
                mean = gradient(observation.known_support[learner], whole)
            else:
                mean = gradient(whole, observation.known_query[learner])
            ratio += sign * density(seen, mean, noise)
        assert float(answers.scores[row]) == pytest.approx(float(ratio), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("asks", ["query", "support"])
@pytest.mark.parametrize(
    "defenses", [(), (Selection(),), (Pruning(keep=0.5),), (Quantization(bits=8),), (Noise(scale=0.0),)]
)
def test_without_noise_every_score_is_right(defenses, asks):
    observation, targets, member = federation(defenses, asks)
    scores = LikelihoodRatio(asks=asks)(observation, targets, 0).scores
    assert torch.equal(scores > 0, member)


def test_the_auc_under_the_gaussian_mechanism_follows_from_the_separation():
    observation, targets, member = federation((GaussianMechanism(clip=0.05, noise_multiplier=0.3),), learners=600)
    answers = LikelihoodRatio()(observation, targets, 0)
    apart = answers.statistics["separation"]
    assert apart.max() < 1 / 0.3
    # A member's score is normal about apart^2 / 2, a non-member's about the negative, both of deviation `apart`.
    expected = Normal(0.0, 1.0).cdf(apart.median() / math.sqrt(2))
    auc = evaluate(answers.scores.numpy(), member.numpy(), resamples=200).auc
    assert auc.low < float(expected) < auc.high
    assert 0.55 < float(expected) < 0.9
    signed = answers.scores * torch.where(member, 1.0, -1.0)
    assert float(signed.sum() / apart.square().sum()) == pytest.approx(0.5, abs=0.15)


def test_the_separation_does_not_depend_on_membership():
    observation, targets, member = federation((Noise(scale=0.5),), learners=300)
    apart = LikelihoodRatio()(observation, targets, 0).statistics["separation"]
    auc = evaluate(apart.numpy(), member.numpy(), resamples=200).auc
    assert auc.low < 0.5 < auc.high


def test_scores_do_not_depend_on_the_chunk_or_on_other_targets():
    observation, targets, _ = federation((Noise(scale=0.3),), learners=10)
    all_scores = LikelihoodRatio(chunk=7)(observation, targets, 0).scores
    told = []
    again = LikelihoodRatio(chunk=1)(observation, targets, 5, lambda done, of: told.append((done, of))).scores
    torch.testing.assert_close(all_scores, again, rtol=1e-4, atol=1e-3)
    assert told == [(done, 20) for done in range(1, 21)]


class Halved:
    """A user's noiseless defense, which states that."""

    place = "shared"

    def noise(self):
        return NO_NOISE

    def without_noise(self, tensors):
        return {name: value / 2 for name, value in tensors.items()}

    def __call__(self, tensors, random):
        return self.without_noise(tensors)


class HalvedAndNoisy(Halved):
    """Noise with a fixed standard deviation on half of every entry."""

    def noise(self):
        return AddedNoise("laplace", 0.01)

    def __call__(self, tensors, random):
        law = Laplace(0.0, 0.01 / math.sqrt(2))
        torch.manual_seed(int(torch.randint(2**31, (), generator=random.generator)))
        return {name: value + law.sample(value.shape) for name, value in self.without_noise(tensors).items()}


class Silent:
    """A noiseless defense that does not state its noise."""

    place = "shared"

    def __call__(self, tensors, random):
        return tensors


def test_a_users_noiseless_defense_is_used():
    observation, targets, member = federation((Halved(),))
    assert torch.equal(LikelihoodRatio()(observation, targets, 0).scores > 0, member)


def test_the_noise_that_a_users_defense_states_is_used():
    observation, targets, _ = federation((Halved(), HalvedAndNoisy()), learners=5)
    scores = LikelihoodRatio()(observation, targets, 0).scores
    for row, learner in enumerate(targets.rows.tolist()):
        seen = flat({name: value[learner] for name, value in observation.gradients.items()})
        ratio = 0
        for sign, image in ((1, targets.examples[row]), (-1, observation.rest.alternatives[row])):
            whole = observation.rest.images[row].clone()
            whole[observation.rest.slots[row]] = image
            mean = flat(gradient(observation.known_support[learner], whole)) / 4
            ratio += sign * Laplace(mean, 0.01 / math.sqrt(2)).log_prob(seen).sum()
        assert float(scores[row]) == pytest.approx(float(ratio), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("defenses", "said"),
    [
        ((Noise(place="query"),), "Noise at the place 'query'"),
        ((Noise(), Pruning(keep=0.5)), "Noise at the place 'shared'"),
        ((Quantization(bits=8, stochastic=True),), "Quantization"),
        ((GaussianMechanism(clip=1, noise_multiplier=1), SecureAggregation()), "GaussianMechanism"),
        ((SecureAggregation(),), "SecureAggregation at the place 'aggregate'"),
        ((Silent(),), "Silent at the place 'shared'"),
        ((Halved(), Silent(), Sign()), "Silent"),
    ],
)
def test_a_defense_with_an_unknown_distribution_is_refused(defenses, said):
    observation, targets, _ = federation((), learners=2)
    told = Observation(**{**vars(observation), "defenses": defenses})
    assert said in LikelihoodRatio().reason_against(defenses)
    with pytest.raises(ValueError, match=said):
        LikelihoodRatio()(told, targets, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rest": None}, "rest, known_support or known_query, and defenses"),
        ({"known_support": None}, "rest, known_support or known_query, and defenses"),
        ({"defenses": None}, "rest, known_support or known_query, and defenses"),
        ({"mean_of": 4}, "got a mean of 4"),
    ],
)
def test_missing_knowledge_is_named(changes, said):
    observation, targets, _ = federation((), learners=2)
    with pytest.raises(ValueError, match=said):
        LikelihoodRatio()(Observation(**{**vars(observation), **changes}), targets, 0)


@pytest.mark.parametrize(
    "defenses", [(), (GaussianMechanism(clip=0.1, noise_multiplier=1.0),), (Noise(law="laplace"),)]
)
@pytest.mark.parametrize("asks", ["query", "support"])
def test_it_creates_tensors_on_the_device_of_its_inputs(asks, defenses):
    """The default device is set to one without data: a tensor created there would fail or show in the scores."""
    observation, targets, _ = federation(defenses, asks, learners=3)
    attack = LikelihoodRatio(asks=asks)
    plain = attack(observation, targets, 0)
    with torch.device("meta"):
        answers = attack(observation, targets, 0)
    assert attack.on_any_device
    assert torch.equal(answers.scores, plain.scores)
