import sys

import pytest
import torch

from metaleak.clients.models import TinyBERT
from metaleak.clients.models.tokenizer import tokenizer_in


def test_without_the_extra_one_line_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'metaleak\[text\]'"):
        TinyBERT(vocabulary=31).initialize((6,), 2, torch.Generator())
    with pytest.raises(ValueError, match=r"pip install 'metaleak\[text\]'"):
        tokenizer_in(tmp_path)
