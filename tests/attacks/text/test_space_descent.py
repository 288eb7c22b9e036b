import pytest
import torch

pytest.importorskip("transformers")

from metaleak.attacks.observation import Observation
from metaleak.attacks.text.space_descent import TextDescent
from metaleak.clients.episode import Episode
from metaleak.clients.models import TinyBERT
from metaleak.clients.rules import FedSGD
from metaleak.clients.sharing import computed_part

MODEL = TinyBERT(layers=3, width=64, heads=4, positions=16, vocabulary=40)
SENTENCE = torch.tensor([[2, 17, 9, 31, 12, 3]])


def observed(*weights, queries=1):
    parameters = MODEL.initialize((6,), 2, torch.Generator().manual_seed(0))
    computing, moving = computed_part(weights, MODEL, FedSGD(), parameters)
    episode = Episode(SENTENCE, torch.tensor([1]), SENTENCE[:0], torch.tensor([0])[:0])
    gradient, _ = FedSGD().meta_gradient(computing, moving, episode)
    shared = {name: gradient[name].detach()[None] for name in gradient}
    return Observation(MODEL, FedSGD(), parameters, shared, ways=1, shots=0, queries=queries, input_shape=(6,))


@pytest.mark.parametrize(
    "component", ["attention.self.query", "attention.self.value", "attention.output.dense", "intermediate.dense"]
)
def test_a_sentence_is_reconstructed_from_a_matrix_of_a_middle_layer(component):
    attack = TextDescent(steps=60, nearest=6)
    made = attack.reconstruct(observed(f"bert.encoder.layer.1.{component}.weight"), seed=0)
    assert made.examples.tolist() == [SENTENCE.tolist()]
    assert made.confidence[0, 0] > 0.9


def test_the_last_layer_reveals_too_few_tokens():
    made = TextDescent(steps=5, rounds=1).reconstruct(observed("bert.encoder.layer.2.attention.self.query.weight"), 0)
    assert (made.examples[0, 0] != 0).sum() < 6


def test_several_sentences_are_rejected():
    with pytest.raises(ValueError, match="reconstructs one sentence, and the gradient is over 2"):
        TextDescent().reconstruct(observed("bert.encoder.layer.1.attention.self.query.weight", queries=2), 0)


def test_embedding_tables_are_skipped_and_the_vocabulary_may_be_small():
    query = "bert.encoder.layer.1.attention.self.query.weight"
    observation = observed("*word_embeddings*", query)
    attack = TextDescent(steps=2, rounds=1, nearest=41)
    made, other = (one.reconstruct(observation, 0) for one in (attack, attack.model_copy(update={"matrix": query})))
    assert torch.equal(made.examples, other.examples)
    with pytest.raises(ValueError, match="needs a layer with one input vector per token"):
        TextDescent(matrix=MODEL.embedding_table).reconstruct(observation, 0)
    observation.gradients[query].zero_()
    with pytest.raises(ValueError, match="gradient is 0"):
        attack.reconstruct(observation, 0)
