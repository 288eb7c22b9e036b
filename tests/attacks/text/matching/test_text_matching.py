"""On a tiny BERT with random parameters."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from metaleak.attacks.observation import Observation
from metaleak.attacks.text.matching.gradient_distance import GradientDistance, Sentences
from metaleak.attacks.text.matching.text_matching import TextMatching
from metaleak.clients.episode import Episode
from metaleak.clients.models import TinyBERT
from metaleak.clients.rules import MAML, FedSGD
from metaleak.clients.sharing import computed_part

MODEL = TinyBERT(layers=2, width=32, heads=4, positions=16, vocabulary=40)
LAYERS = ("bert.encoder.*", "classifier.*")
VALUE = "bert.encoder.layer.1.attention.self.value.weight"
FIRST, SECOND = [2, 17, 9, 31, 12, 3], [2, 8, 25, 3, 0, 0]
QUICK = TextMatching(steps=60, candidates=20, from_step=20, every=10, proposals=10, rate=0.1, decay_every=5)


def observed(*shares, sentences=(FIRST,), labels=(0,), model=MODEL):
    parameters = model.initialize((6,), 2, torch.Generator().manual_seed(0))
    tokens = torch.tensor(sentences)
    computing, moving = computed_part(shares, model, FedSGD(), parameters)
    episode = Episode(tokens, torch.tensor(labels), tokens[:0], torch.tensor(labels)[:0])
    gradient, _ = FedSGD().meta_gradient(computing, moving, episode)
    shared = {name: value.detach()[None] for name, value in gradient.items()}
    size = len(sentences)
    lengths = (tokens != 0).sum(dim=1)[None]
    return Observation(
        model, FedSGD(), parameters, shared, ways=1, shots=0, queries=size, input_shape=(6,), lengths=lengths
    )


def test_the_distance_is_0_at_the_true_sentences_and_its_derivative_matches_finite_differences():
    names = (VALUE, MODEL.embedding_table, "bert.embeddings.position_embeddings.weight", "classifier.bias")
    observation = observed(*names, sentences=(FIRST, SECOND), labels=(0, 1))
    parameters = {name: value.double() for name, value in observation.parameters.items()}
    tokens = torch.tensor([[FIRST, SECOND]])
    sentences = Sentences(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens != 0)
    seen = {name: value.double() for name, value in observation.gradients.items()}
    distance = GradientDistance(MODEL, parameters, seen, sentences, 1 << 20)
    exact = parameters[MODEL.embedding_table][tokens][:, None]
    labels, words = torch.tensor([[[0, 1]]]), tokens[:, None]
    assert float(distance(exact, labels, words)) == pytest.approx(0, abs=1e-6)
    assert float(distance(exact, 1 - labels, words)) > 0.1

    torch.manual_seed(0)
    point = (exact + 0.1 * torch.randn_like(exact)).requires_grad_()
    (slope,) = torch.autograd.grad(distance(point, labels, words).sum(), point)
    along = torch.randn_like(exact)
    values = [float(distance(point.detach() + step * along, labels, words)) for step in (1e-5, -1e-5)]
    assert float((slope * along).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_a_tensor_with_zero_gradient_changes_nothing():
    alone, with_zeros = observed(VALUE), observed(VALUE, "classifier.weight")
    with_zeros.gradients["classifier.weight"].zero_()
    attack = QUICK.model_copy(update={"steps": 3})
    made = [attack.reconstruct(one, seed=0) for one in (alone, with_zeros)]
    assert torch.equal(made[0].examples, made[1].examples)
    assert torch.allclose(made[0].confidence, made[1].confidence)


@pytest.mark.parametrize("shares", [LAYERS, (VALUE,)], ids=["all layers", "one matrix of the last layer"])
def test_words_of_a_sentence_are_found_from_any_selection_of_parameters(shares):
    made = QUICK.reconstruct(observed(*shares), seed=0)
    assert len(set(made.examples[0, 0].tolist()) & set(FIRST)) >= 5
    assert made.confidence.shape == (1, 1)


def test_words_of_two_sentences_with_unknown_labels_are_found_from_all_parameters():
    attack = QUICK.model_copy(update={"labels": "unknown"})
    observation = observed("*", sentences=(FIRST, SECOND), labels=(0, 1))
    made = attack.reconstruct(observation, seed=0)
    # The embedding's gradient reveals which words occur.
    assert set(made.examples.flatten().tolist()) <= {*FIRST, *SECOND}
    assert made.confidence.min() > 0.5


def test_the_result_of_a_learner_does_not_depend_on_other_learners():
    one, other = observed(VALUE), observed(VALUE, sentences=([2, 5, 6, 7, 8, 3],))
    both = replace(
        one,
        gradients={VALUE: torch.cat([one.gradients[VALUE], other.gradients[VALUE]])},
        lengths=torch.cat([one.lengths, other.lengths]),
    )
    few = {"steps": 21, "candidates": 4, "proposals": 4, "exchanges": 2}
    attack = QUICK.model_copy(update=few | {"memory": 1e-9})
    assert torch.equal(attack.reconstruct(both, seed=0).examples[0], attack.reconstruct(one, seed=0).examples[0])


def test_the_length_of_a_single_sentence_is_estimated_from_the_rank():
    first = "bert.encoder.layer.0.attention.self.query.weight"
    observation = replace(observed(first, sentences=([2, 8, 25, 3, 0, 0],)), lengths=None)
    attack = QUICK.model_copy(update={"steps": 1, "lengths": "estimated"})
    made = attack.reconstruct(observation, seed=0)
    assert (made.examples != 0).sum() == 4


def test_observations_that_cannot_be_matched_are_rejected_in_one_line():
    observation = observed(VALUE)
    for wrong, message in (
        (replace(observation, rule=MAML()), "rule fedsgd"),
        (replace(observation, lengths=torch.tensor([[7]])), "lengths: sentences have at most 6 tokens, got 7"),
        (replace(observation, lengths=None), "lengths: needs those of 1 x 1 sentences, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            QUICK.reconstruct(wrong, seed=0)
    with pytest.raises(ValueError, match="texts: the model has no tokenizer"):
        QUICK.model_copy(update={"texts": (Path("nowhere.txt"),)}).reconstruct(observation, seed=0)
    several = observed(VALUE, sentences=(FIRST, SECOND), labels=(0, 1))
    with pytest.raises(ValueError, match="lengths: can be estimated for a single sentence, and learners have 2"):
        QUICK.model_copy(update={"lengths": "estimated"}).reconstruct(several, seed=0)
    assert QUICK.requires == {"labels", "lengths"}
    assert not QUICK.model_copy(update={"labels": "unknown", "lengths": "estimated"}).requires
    assert QUICK.on_any_device
