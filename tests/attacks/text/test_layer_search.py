"""Sentences that no head can separate: the inputs of a second layer depend on whole sentences."""

import pytest
import torch

pytest.importorskip("transformers")

from metaleak.attacks.observation import Observation
from metaleak.attacks.text.input_space import input_space
from metaleak.attacks.text.layer_consistency import LayerConsistency
from metaleak.attacks.text.span_attack import TextSpan, candidates_of
from metaleak.clients.episode import Episode
from metaleak.clients.models import TinyBERT, Transformer
from metaleak.clients.rules import FedSGD

FIRST, SECOND = (f"bert.encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 1))
# A head has four dimensions, fewer than any sentence has tokens.
MODEL = TinyBERT(layers=3, width=96, heads=24, positions=16)
LENGTH = 9


def sentences(*inner):
    """Return padded sentences of these words between a start and an end token."""
    tokens = torch.zeros(len(inner), LENGTH, dtype=torch.int64)
    for row, words in enumerate(inner):
        tokens[row, : len(words) + 2] = torch.tensor([MODEL.begin, *words, MODEL.end])
    return tokens


def observed(tokens, model=MODEL, names=(FIRST, SECOND)):
    parameters = model.initialize((LENGTH,), 2, torch.Generator().manual_seed(0))
    labels = torch.arange(len(tokens)) % 2
    gradient, _ = FedSGD().meta_gradient(model, parameters, Episode(tokens, labels, tokens[:0], labels[:0]))
    shared = {name: gradient[name].detach()[None] for name in names}
    return Observation(
        model, FedSGD(), parameters, shared, ways=1, shots=0, queries=len(tokens), input_shape=(LENGTH,)
    )


DISTINCT = sentences([10, 11, 12, 13, 14], [20, 21, 22, 23], [30, 31, 32, 33, 34, 35])
# The words 10 and 20 share three positions: their inputs to the first layer are linearly dependent.
REPEATED = sentences([10, 20, 12, 13, 10], [20, 10, 22, 23, 20], [30, 31, 10, 33, 34, 20])


@pytest.mark.parametrize("held", [DISTINCT, REPEATED], ids=["distinct", "repeated"])
def test_two_matrices_separate_sentences_that_heads_cannot(held):
    observation = observed(held)
    made = TextSpan(uses="two matrices").reconstruct(observation, seed=0)
    assert {tuple(one) for one in made.examples[0].tolist()} == {tuple(one) for one in held.tolist()}
    assert (made.confidence > 0.9).all()
    assert (TextSpan().reconstruct(observation, seed=0).confidence < 0.9).all()


def test_short_sentences_that_share_their_ends_are_all_found():
    held = sentences([10, 11], [20, 21], [30, 31], [40, 41])
    made = TextSpan(uses="two matrices").reconstruct(observed(held), seed=0)
    assert {tuple(one) for one in made.examples[0].tolist()} == {tuple(one) for one in held.tolist()}


def test_a_last_layer_gives_no_confidence():
    model = TinyBERT(layers=2, width=96, heads=24, positions=16)
    made = TextSpan(uses="two matrices").reconstruct(observed(DISTINCT, model), seed=0)
    assert (made.confidence < 0.9).all()


def test_sentences_of_a_decoder_are_extended_token_by_token(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.GPT2Config(
        vocab_size=200, n_embd=96, n_layer=3, n_head=4, n_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    transformers.GPT2ForSequenceClassification(settings).save_pretrained(tmp_path)
    # These sentences have no start and no end token.
    held = torch.nn.functional.pad(REPEATED[:, 1:], (0, 1))
    held = held.masked_fill(held == MODEL.end, 0)
    observation = observed(
        held, Transformer(directory=tmp_path), [f"transformer.h.{layer}.attn.c_attn.weight" for layer in (0, 1)]
    )
    made = TextSpan(uses="two matrices").reconstruct(observation, seed=0)
    assert {tuple(one) for one in made.examples[0].tolist()} == {tuple(one) for one in held.tolist()}
    assert (made.confidence > 0.9).all()


def test_slopes_are_the_derivatives_of_the_mean_distances():
    observation = observed(DISTINCT)
    gradients = {name: value[0] for name, value in observation.gradients.items()}
    _, found = candidates_of(MODEL, observation.parameters, FIRST, gradients[FIRST], LENGTH)
    space = input_space(gradients[SECOND])
    consistency = LayerConsistency(found, MODEL, observation.parameters, SECOND, space)
    rows = torch.tensor([[0, 3, 5, 7, -1, -1], [1, 2, 4, 6, 8, 9]])
    slopes = consistency.slopes(rows)
    assert not slopes[0, 4:].any()
    place, step = (1, 3), 1e-3
    moved = consistency.embeddings[rows]
    toward = slopes[place] / slopes[place].norm()

    def mean(by):
        changed = moved.clone()
        changed[place] += by * toward
        parts = consistency._outside(rows, changed).sum(dim=1) / (rows >= 0).sum(dim=1)
        return float(parts[1])

    measured = (mean(step) - mean(-step)) / (2 * step)
    assert measured == pytest.approx(float(slopes[place].norm()), rel=2e-2)
