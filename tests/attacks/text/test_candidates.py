import pytest
import torch

pytest.importorskip("transformers")

from metaleak.attacks.text.candidates import takes_single_tokens
from metaleak.clients.models import Transformer


@pytest.mark.parametrize("padding", [0, 29])
def test_only_the_first_layer_of_a_decoder_processes_tokens_independently(tmp_path, padding):
    transformers = pytest.importorskip("transformers")
    settings = transformers.GPT2Config(
        vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=10, pad_token_id=padding
    )
    transformers.GPT2ForSequenceClassification(settings).save_pretrained(tmp_path)
    model = Transformer(directory=tmp_path)
    parameters = model.initialize((6,), 2, torch.Generator().manual_seed(1))
    layers = [takes_single_tokens(model, parameters, f"transformer.h.{layer}.attn.c_attn.weight") for layer in (0, 1)]
    assert layers == [True, False]
