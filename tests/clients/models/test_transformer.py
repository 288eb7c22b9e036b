import pytest
import torch
from torch.func import grad, vmap

pytest.importorskip("transformers")

from metaleak.clients.models import TinyBERT, Transformer, head_of
from metaleak.clients.rules import MAML, FedSGD, anil
from metaleak.clients.rules.rule import cross_entropy
from metaleak.clients.sharing import computed_part

MODEL = TinyBERT(vocabulary=30, width=8, heads=2, positions=10)
TOKENS = torch.tensor([[2, 7, 9, 4, 3, 0], [2, 5, 3, 0, 0, 0]])
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def parameters():
    return MODEL.initialize((6,), 2, torch.Generator().manual_seed(1))


def test_padding_changes_no_logits(parameters):
    short = MODEL(parameters, TOKENS[1:, :3])
    torch.testing.assert_close(MODEL(parameters, TOKENS)[1:], short)


def test_the_same_seed_gives_the_same_parameters(parameters):
    again = MODEL.initialize((6,), 2, torch.Generator().manual_seed(1))
    other = MODEL.initialize((6,), 3, torch.Generator().manual_seed(2))
    assert all(torch.equal(again[name], value) for name, value in parameters.items())
    assert other["classifier.weight"].shape == (3, 8)
    assert not torch.equal(other[QUERY], parameters[QUERY])
    assert head_of(MODEL) == ("classifier.weight", "classifier.bias")


def test_second_order_meta_gradients_are_those_of_central_differences(parameters):
    rule = MAML(inner_steps=1, inner_rate=0.3)
    wide = {name: value.double() for name, value in parameters.items()}
    labels = torch.tensor([0, 1])

    def after(weight):
        at = {**wide, QUERY: weight}
        adapted = rule.adapt(MODEL, at, episode)
        return cross_entropy(MODEL, adapted, TOKENS.flip(0), labels)

    from metaleak.clients.episode import Episode

    episode = Episode(TOKENS, labels, TOKENS.flip(0), labels)
    found = rule.meta_gradient(MODEL, wide, episode)[0][QUERY]
    direction = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5
    slope = (after(wide[QUERY] + step * direction) - after(wide[QUERY] - step * direction)) / (2 * step)
    torch.testing.assert_close((found * direction).sum(), slope, rtol=1e-6, atol=1e-10)


def test_what_a_layer_takes_spans_the_gradient_of_its_weight(parameters):
    wide = {name: value.double() for name, value in parameters.items()}
    gradient = grad(lambda at: cross_entropy(MODEL, at, TOKENS, torch.tensor([0, 1])))(wide)[QUERY]
    inputs = MODEL.inputs_of(QUERY, wide, TOKENS)
    assert inputs.shape == (2, 6, 8)
    rows = inputs[TOKENS != 0]
    basis = torch.linalg.svd(rows, full_matrices=False).Vh
    torch.testing.assert_close(gradient @ basis.mT @ basis, gradient)


def test_what_a_layer_takes_is_right_of_a_model_that_was_never_called():
    # None of the other tests has this width.
    model = TinyBERT(vocabulary=30, width=16, heads=2, positions=10)
    parameters = model.initialize((6,), 2, torch.Generator().manual_seed(1))
    first = model.inputs_of(QUERY, parameters, TOKENS)
    assert first.shape == (2, 6, 16)
    model(parameters, TOKENS)
    assert torch.equal(model.inputs_of(QUERY, parameters, TOKENS), first)


def test_many_learners_are_computed_at_once(parameters):
    labels = torch.tensor([0, 1])

    def gradient(tokens):
        return grad(lambda at: cross_entropy(MODEL, at, tokens, labels))(parameters)[QUERY]

    both = torch.stack([TOKENS, TOKENS.flip(0)])
    torch.testing.assert_close(vmap(gradient)(both)[1], gradient(both[1]))


def test_what_is_not_learned_is_no_parameter_and_lora_learns_factors_alone():
    frozen = TinyBERT(vocabulary=30, width=8, heads=2, learns=("classifier.*",), lora=2)
    parameters = frozen.initialize((6,), 2, torch.Generator().manual_seed(1))
    factors = [name for name in parameters if "lora" in name]
    assert len(factors) == 8  # query and value of two layers
    assert set(parameters) - set(factors) == {"classifier.weight", "classifier.bias"}
    name = QUERY.replace(".weight", ".lora_a")
    before = frozen(parameters, TOKENS)
    # With B at 0 the adapters change nothing yet.
    torch.testing.assert_close(frozen({**parameters, name: parameters[name] + 1}, TOKENS), before)
    parameters[name.replace("_a", "_b")] += 1
    assert not torch.allclose(frozen(parameters, TOKENS), before)


def test_the_head_alone_adapts_and_one_matrix_alone_is_shared(parameters):
    model, moving = computed_part((QUERY,), MODEL, anil(), parameters)
    assert set(moving) == {QUERY, "classifier.weight", "classifier.bias"}
    assert set(computed_part((QUERY,), MODEL, FedSGD(), parameters)[1]) == {QUERY}
    assert MAML(adapts=("classifier.*",)).adapted_names(model, moving) == anil().adapted_names(MODEL, parameters)


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (MODEL, (11,), "takes at most 10 tokens, and the data's sentences have 11"),
        (MODEL, (1, 8, 8), "takes tokens"),
        (TinyBERT(learns=("encoder.*",)), (6,), "learns: no parameter is called"),
        (TinyBERT(width=9), (6,), "width: 9 is not a multiple of the 4 heads"),
        (Transformer(directory="nowhere"), (6,), "config.json cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(model, shape, said):
    with pytest.raises(ValueError, match=said):
        model.initialize(shape, 2, torch.Generator())


def test_a_classifier_that_is_not_learned_is_of_two_classes():
    with pytest.raises(ValueError, match="classifier that is not learned has 2 classes, and the task has 3"):
        TinyBERT(learns=("*.query.weight", "classifier.weight")).initialize((6,), 3, torch.Generator())


def test_a_model_is_read_from_a_directory_and_its_first_layers_are_taken(tmp_path, parameters):
    MODEL.module.save_pretrained(tmp_path)
    one = Transformer(directory=tmp_path, layers=1)
    read = one.initialize((6,), 2, torch.Generator().manual_seed(1))
    assert not any("layer.1" in name for name in read)
    stored = dict(MODEL.module.named_parameters())
    assert torch.equal(read[QUERY], stored[QUERY])


def test_layers_of_distilbert_are_counted_and_a_vocabulary_may_have_two_tokens(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.DistilBertConfig(vocab_size=3, dim=8, hidden_dim=8, n_layers=2, n_heads=2)
    transformers.DistilBertForSequenceClassification(settings).save_pretrained(tmp_path)
    model = Transformer(directory=tmp_path, layers=1)
    read = model.initialize((6,), 2, torch.Generator().manual_seed(1))
    assert not any("layer.1" in name for name in read)
    assert model(read, TOKENS.clamp(max=2)).shape == (2, 2)


def test_weights_that_are_not_those_of_the_model_are_refused_and_a_classifier_is_drawn(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    MODEL.module.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = safetensors.load_file(path)
    for changed in ({}, {QUERY: torch.zeros(4, 8)}):
        others = {name: value for name, value in weights.items() if name != QUERY}
        safetensors.save_file({**others, **changed}, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"lacks 1 weights of the model, or has them in another shape: {QUERY}"):
            Transformer(directory=tmp_path).build(2)
    others = {name: value for name, value in weights.items() if not name.startswith("classifier.bias")}
    safetensors.save_file(others, path, metadata={"format": "pt"})
    assert Transformer(directory=tmp_path).build(3).get_parameter("classifier.weight").shape == (3, 8)


def test_layers_that_a_configuration_does_not_count_are_refused(tmp_path):
    MODEL.module.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("num_hidden_layers", "blocks"))
    with pytest.raises(ValueError, match="does not say how many layers"):
        Transformer(directory=tmp_path, layers=1).build(2)


def test_a_decoder_sees_earlier_tokens_alone(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=10, pad_token_id=0)
    transformers.GPT2ForSequenceClassification(settings).save_pretrained(tmp_path)
    model = Transformer(directory=tmp_path)
    parameters = model.initialize((6,), 2, torch.Generator().manual_seed(1))
    second = "transformer.h.1.attn.c_attn.weight"
    first, other = (model.inputs_of(second, parameters, tokens) for tokens in (TOKENS, TOKENS[:, :5]))
    torch.testing.assert_close(first[:, :5], other)
    assert model.over_inputs(second, parameters[second]).shape == (24, 8)
    assert model(parameters, TOKENS).shape == (2, 2)
