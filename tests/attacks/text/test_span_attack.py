"""On the gradients that learners share of a tiny BERT with random parameters and sentences of random words."""

from dataclasses import replace

import pytest
import torch
from pydantic import BaseModel, ConfigDict

pytest.importorskip("transformers")

from metaleak.attacks.attack import Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.text.membership import TextMembership
from metaleak.attacks.text.span_attack import TextSpan, candidates_of
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import LabeledExamples
from metaleak.clients.episode import Episode
from metaleak.clients.federation import Federation
from metaleak.clients.models import MLP, TextModel, TinyBERT
from metaleak.clients.partition import Partition, TaskShape
from metaleak.clients.rules import MAML, FedSGD
from metaleak.clients.shard import episode

FIRST = "bert.encoder.layer.0.attention.self.{}.weight"
SECOND = "bert.encoder.layer.1.attention.self.query.weight"
MODEL = TinyBERT(layers=3, width=96, heads=4, positions=16)
LENGTH = 10


class RandomWords(BaseModel):
    """Forty sentences per class, of four to eight out of 190 words each, between a start and an end token."""

    model_config = ConfigDict(frozen=True)

    def load(self):
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(4, 194, (80, LENGTH), generator=generator)
        tokens[:, 0] = MODEL.begin
        for row, size in enumerate(torch.randint(5, LENGTH, (80,), generator=generator).tolist()):
            tokens[row, size] = MODEL.end
            tokens[row, size + 1 :] = 0
        return LabeledExamples(tokens, torch.arange(80) % 2, ("a", "b"), modality="tokens", padding=0)


def observed(*shares, model=MODEL):
    federation = Federation(
        seed=3,
        data=RandomWords(),
        task=TaskShape(ways=2),
        partition=Partition(learners=3),
        model=model,
        rule=FedSGD(),
        shares=shares,
    )
    parameters = federation.initial_parameters()
    learners = federation.learners([0, 1, 2])
    gradients, _ = cohort_meta_gradients(learners, parameters, 1)
    sentences = []
    for learner in learners:
        held = episode(learner.data, learner.drawn(1))
        sentences.append(torch.cat([held.support_inputs, held.query_inputs]))
    observation = Observation(
        model, FedSGD(), parameters, gradients, ways=2, shots=1, queries=1, input_shape=(LENGTH,)
    )
    return observation, torch.stack(sentences)


def as_a_mean(observation):
    """Return what a server observes from the same learners under secure aggregation."""
    means = {name: value.mean(dim=0, keepdim=True).expand_as(value) for name, value in observation.gradients.items()}
    return replace(observation, gradients=means, mean_of=len(next(iter(means.values()))))


def test_from_a_mean_sentences_of_all_learners_are_reconstructed_and_separated_from_others():
    observation, sentences = observed(
        FIRST.format("query"), model=TinyBERT(layers=3, width=192, heads=4, positions=16)
    )
    mean = as_a_mean(observation)
    made = TextSpan().reconstruct(mean, seed=0)
    assert made.examples.shape == (3, 12, LENGTH)
    assert torch.equal(made.examples[0], made.examples[2])
    everyone = sentences.flatten(0, 1)
    asked = Targets(everyone, torch.arange(3).repeat_interleave(4), torch.zeros(12, dtype=torch.int64))
    scores = TextMembership()(mean, asked, seed=0).scores
    own = TextMembership()(observation, asked, seed=0).scores
    held = {tuple(sentence) for sentence in everyone.tolist()}
    others = torch.stack([one for one in RandomWords().load().examples if tuple(one.tolist()) not in held][:12])
    outside = TextMembership()(mean, replace(asked, examples=others), seed=0).scores
    assert min(float(scores.min()), float(own.min())) > float(outside.max())


def rows(sentences):
    return [{tuple(sentence) for sentence in learner} for learner in sentences.tolist()]


@pytest.mark.parametrize("kind", ["query", "value", "key"])
def test_one_matrix_reveals_every_token_of_the_sentences(kind):
    observation, held = observed(FIRST.format(kind))
    made = TextSpan().reconstruct(observation, seed=0).examples
    for ours, true in zip(made, held, strict=True):
        for place in range(LENGTH):
            assert set(ours[:, place].tolist()) == set(true[:, place].tolist())


def test_the_query_matrix_separates_sentences_and_sentences_of_high_confidence_are_correct():
    observation, held = observed(FIRST.format("query"))
    made = TextSpan().reconstruct(observation, seed=0)
    found = [ours & true for ours, true in zip(rows(made.examples), rows(held), strict=True)]
    confident = made.confidence > 0.9
    assert all(
        tuple(sentence.tolist()) in true
        for learner, true in enumerate(rows(held))
        for sentence in made.examples[learner][confident[learner]]
    )
    assert sum(len(one) for one in found) >= int(confident.sum()) > 0


def test_a_second_layer_separates_all_sentences():
    observation, held = observed(FIRST.format("query"), SECOND)
    made = TextSpan(uses="two matrices").reconstruct(observation, seed=0)
    assert rows(made.examples) == rows(held)
    assert (made.confidence > 0.9).all()


def test_a_token_whose_row_of_the_word_embedding_is_0_is_dropped():
    observation, held = observed(FIRST.format("query"), "*word_embeddings*")
    token = int(held[0, 0, 1])
    for uses, there in (("one matrix", True), ("embeddings", False)):
        observation.gradients[MODEL.embedding_table][0, token] = 0
        made = TextSpan(uses=uses).reconstruct(observation, seed=0).examples
        assert (token in made[0]) == there
        assert set(made[1].flatten().tolist()) == set(held[1].flatten().tolist())


def test_a_learner_whose_gradient_is_0_gets_confidence_0_and_its_sentences_score_0():
    observation, held = observed(FIRST.format("query"))
    observation.gradients[FIRST.format("query")][1] = 0
    made = TextSpan().reconstruct(observation, seed=0)
    assert (made.examples[1] == 0).all()
    assert (made.confidence[1] == 0).all()
    assert (made.examples[0] != 0).any()
    asked = Targets(held[:2, 0], torch.arange(2), torch.zeros(2).long())
    scores = TextMembership()(observation, asked, seed=0).scores
    assert scores[0] > 0 == scores[1]


@pytest.mark.parametrize(
    ("gradient", "message"),
    [(0.0, "gradient is 0"), (torch.nan, "not finite")],
)
@pytest.mark.parametrize("attack", [TextSpan(), TextMembership()])
def test_gradients_that_reveal_nothing_about_any_learner_are_rejected(attack, gradient, message):
    observation, held = observed(FIRST.format("query"))
    observation.gradients[FIRST.format("query")][:] = gradient
    asked = Targets(held[:1, 0], torch.zeros(1).long(), torch.zeros(1).long())
    with pytest.raises(ValueError, match=message):
        attack.reconstruct(observation, 0) if isinstance(attack, TextSpan) else attack(observation, asked, 0)


def test_the_key_matrix_may_be_a_constant_of_the_model():
    query, classifier = FIRST.format("query"), "classifier.*"
    observation, held = observed(query, model=MODEL.model_copy(update={"learns": (query, classifier)}))
    made = TextSpan().reconstruct(observation, seed=0)
    for ours, true in zip(made.examples, held, strict=True):
        assert set(ours.flatten().tolist()) == set(true.flatten().tolist())
    assert (made.confidence > 0.9).any()


@pytest.mark.parametrize(
    ("shares", "attack", "message"),
    [
        (["classifier.*"], TextSpan(), "query, key or value matrix of the first layer"),
        ([SECOND], TextSpan(), "query, key or value matrix of the first layer"),
        ([FIRST.format("query")], TextSpan(uses="two matrices"), "needs a matrix of a later layer"),
        ([FIRST.format("query")], TextSpan(uses="embeddings"), "needs the gradient of bert.embeddings"),
        ([FIRST.format("query")], TextSpan(matrix=SECOND), "is not shared"),
        (["*.query.*"], TextSpan(matrix=FIRST.format("query").replace("weight", "bias")), "is not a matrix"),
    ],
)
def test_missing_matrices_are_rejected(shares, attack, message):
    observation, _ = observed(*shares)
    with pytest.raises(ValueError, match=message):
        attack.reconstruct(observation, seed=0)


def test_the_gradient_of_another_model_is_rejected():
    observation, _ = observed(FIRST.format("query"))
    name = FIRST.format("query")
    observation.gradients[name] = observation.gradients[name][:, :8]
    with pytest.raises(ValueError, match="is not the gradient of a parameter of the model"):
        TextSpan().reconstruct(observation, seed=0)


def test_the_attack_does_not_apply_to_models_of_images():
    assert not TextSpan().applies_to(MLP())


def test_members_have_positive_scores_and_others_have_negative_scores():
    observation, held = observed(FIRST.format("query"))
    others = RandomWords().load().examples[-40:]
    known = {tuple(sentence) for sentence in held.flatten(0, 1).tolist()}
    outsiders = torch.stack([one for one in others if tuple(one.tolist()) not in known])
    rows = torch.arange(3).repeat_interleave(4)
    asked = Targets(
        torch.cat([held.flatten(0, 1), outsiders]),
        torch.cat([rows, torch.zeros(len(outsiders)).long()]),
        torch.zeros(12 + len(outsiders)).long(),
    )
    scores = TextMembership()(observation, asked, seed=0).scores
    assert scores[:12].min() > 0 > scores[12:].max()


@pytest.mark.parametrize("order", [1, 2])
def test_a_meta_gradient_reveals_query_tokens_and_at_second_order_support_tokens(order):
    parameters = {name: value.double() for name, value in MODEL.initialize((LENGTH,), 2, torch.Generator()).items()}
    data = RandomWords().load()
    tokens, labels, weight = data.examples[:4], torch.tensor([0, 1]), FIRST.format("query")
    rule = MAML(inner_rate=0.1, order=order, adapts=("bert.encoder.*", "classifier.*"))
    shared = rule.meta_gradient(MODEL, parameters, Episode(tokens[:2], labels, tokens[2:], labels))[0][weight]
    _, near = candidates_of(MODEL, parameters, weight, shared.detach(), LENGTH)
    inside = near.ratios <= 1
    found = set(zip(near.tokens[inside].tolist(), near.places[inside].tolist(), strict=True))
    support, query = (
        {(token, place) for row in some.tolist() for place, token in enumerate(row) if token}
        for some in (tokens[:2], tokens[2:])
    )
    assert found == (query if order == 1 else support | query)


def adapters(rank):
    model = TinyBERT(layers=2, width=96, heads=4, positions=16, learns=("classifier.*",), lora=rank)
    return model, model.initialize((LENGTH,), 2, torch.Generator().manual_seed(0))


def observed_of_one_sentence(model, parameters):
    sentence = RandomWords().load().examples[:1]
    episode = Episode(sentence, torch.tensor([1]), sentence[:0], torch.tensor([], dtype=torch.int64))
    gradient, _ = FedSGD().meta_gradient(model, parameters, episode)
    gradients = {name: value.detach()[None] for name, value in gradient.items()}
    observation = Observation(
        model, FedSGD(), parameters, gradients, ways=1, shots=0, queries=1, input_shape=(LENGTH,)
    )
    return observation, sentence


@pytest.mark.parametrize(("rank", "found"), [(16, True), (2, False)])
def test_an_adapter_reveals_a_sentence_if_its_rank_exceeds_the_number_of_tokens(rank, found):
    model, parameters = adapters(rank)
    # As in a later round: at initialization the second factors are 0, and so are the gradients of the first factors.
    random = torch.Generator().manual_seed(1)
    for name in parameters:
        if name.endswith("lora_b"):
            parameters[name] = torch.randn(parameters[name].shape, generator=random) / 10
    observation, sentence = observed_of_one_sentence(model, parameters)
    if found:
        made = TextSpan().reconstruct(observation, seed=0)
        assert torch.equal(made.examples[0], sentence)
        assert bool(made.confidence[0, 0] > 0.9)
    else:
        with pytest.raises(ValueError, match="has rank 1, and reveals inputs only below 1"):
            TextSpan().reconstruct(observation, seed=0)


def test_adapters_reveal_nothing_at_their_initialization():
    observation, _ = observed_of_one_sentence(*adapters(16))
    with pytest.raises(ValueError, match="gradient is 0, as that of LoRA's first factor"):
        TextSpan().reconstruct(observation, seed=0)


def test_attacks_depend_on_the_interface_of_a_model_and_not_on_its_class():
    members = {name: property(lambda _, name=name: getattr(MODEL, name)) for name in dir(TextModel) if name[0] != "_"}
    own = type("Own", (), members | {"__call__": lambda _, *arguments: MODEL(*arguments)})()
    observation, _ = observed(FIRST.format("query"))
    assert TextSpan().applies_to(own)
    made = TextSpan().reconstruct(replace(observation, model=own), seed=0)
    assert torch.equal(made.examples, TextSpan().reconstruct(observation, seed=0).examples)
