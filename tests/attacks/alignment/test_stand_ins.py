"""Stand-ins have a learner's classes, replace only unknown sets, and can be chosen for similarity."""

import pytest
import torch

from metaleak.attacks.alignment.example_gradients import flattened
from metaleak.attacks.alignment.stand_ins import SeenLearner, expected_gradient, stand_ins_for
from metaleak.attacks.observation import Observation
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML

WAYS, SHOTS, QUERIES = 3, 2, 3
CLASSES = torch.tensor([7, 1, 4])


@pytest.fixture(scope="module")
def own():
    data = EmbeddedMNIST().load()
    return OwnExamples(data.examples.float() / 255, data.labels)


@pytest.fixture(scope="module")
def observation():
    model, rule = MLP(hidden=(16,)), MAML()
    parameters = model.initialize((1, 28, 28), WAYS, torch.Generator().manual_seed(0))
    none = {name: torch.zeros(1, *value.shape) for name, value in parameters.items()}
    return Observation(model, rule, parameters, none, WAYS, SHOTS, QUERIES)


def sent_by(observation: Observation, support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    labels = [torch.arange(WAYS).repeat_interleave(each) for each in (SHOTS, QUERIES)]
    episode = Episode(support.flatten(0, 1), labels[0], query.flatten(0, 1), labels[1])
    gradient, _ = observation.rule.meta_gradient(observation.model, observation.parameters, episode)
    return flattened({name: value[None] for name, value in gradient.items()})


def generator():
    return torch.Generator().manual_seed(5)


def nobody() -> SeenLearner:
    return SeenLearner(CLASSES, torch.ones(1, 1))


def test_they_have_the_learners_classes_and_no_image_twice(own, observation):
    made = stand_ins_for(nobody(), observation, own, "query", 4, 1, 6, generator())
    assert made.support.shape == (4, WAYS, SHOTS, 1, 28, 28)
    assert made.query.shape == (4, WAYS, QUERIES, 1, 28, 28)
    assert made.references.shape == (WAYS, 6, 1, 28, 28)
    both = torch.cat([made.support, made.query], dim=2).flatten(3)
    for one in both:
        for position, images in enumerate(one):
            places = (own.images.flatten(1)[:, None] == images).all(dim=2).nonzero()
            assert len(set(places[:, 0].tolist())) == SHOTS + QUERIES
            assert set(own.labels[places[:, 0]].tolist()) == {int(CLASSES[position])}


def test_the_most_similar_of_many_are_chosen(own, observation):
    every = stand_ins_for(nobody(), observation, own, "query", 20, 1, 1, generator())
    observed = sent_by(observation, every.support[13], every.query[13])
    likeness = torch.cat(
        [
            torch.nn.functional.cosine_similarity(sent_by(observation, support, query), observed)
            for support, query in zip(every.support, every.query, strict=True)
        ]
    )
    few = stand_ins_for(SeenLearner(CLASSES, observed), observation, own, "query", 4, 5, 1, generator())
    assert torch.equal(few.support, every.support[likeness.topk(4).indices])
    assert torch.equal(few.support[0], every.support[13])
    assert torch.equal(few.query[0], every.query[13])


def test_a_known_set_is_used_as_it_is(own, observation):
    known = own.draw(CLASSES, SHOTS, generator())
    asked = stand_ins_for(
        SeenLearner(CLASSES, torch.ones(1, 1), known), observation, own, "query", 4, 1, 1, generator()
    )
    assert torch.equal(asked.support, known[None])
    known = own.draw(CLASSES, QUERIES, generator())
    made = stand_ins_for(
        SeenLearner(CLASSES, torch.ones(1, 1), known), observation, own, "support", 4, 1, 1, generator()
    )
    assert torch.equal(made.query, known.expand(4, *known.shape))
    assert len({part.sum().item() for part in made.support}) == 4


def test_the_expected_gradient_is_the_mean_of_their_meta_gradients(own, observation):
    made = stand_ins_for(nobody(), observation, own, "support", 6, 1, 1, generator())
    alone = [sent_by(observation, *sets) for sets in zip(made.support, made.query, strict=True)]
    torch.testing.assert_close(
        expected_gradient(observation, made), torch.cat(alone).mean(dim=0, keepdim=True), rtol=1e-4, atol=1e-6
    )
