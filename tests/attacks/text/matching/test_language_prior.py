import gzip

import pytest
import torch

pytest.importorskip("tokenizers")

from metaleak.attacks.text.matching.language_prior import LanguagePrior, prior_from
from metaleak.clients.models.tokenizer import word_tokenizer

SENTENCES = [[2, 5, 6, 7, 3], [2, 5, 6, 8, 3], [2, 9, 5, 6, 7, 3]]


def test_likelihoods_of_all_tokens_after_a_context_sum_to_1():
    prior = LanguagePrior(SENTENCES, 12)
    for context in ([2], [2, 5], [5, 6], [11, 11], [4, 6]):
        tokens = torch.tensor([[*context, last] for last in range(12)])
        present = torch.zeros_like(tokens, dtype=torch.bool)
        present[:, -2:] = True
        assert float((-prior.surprise(tokens, present)).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_training_sentences_are_more_likely_than_reordered_ones_and_padding_does_not_count():
    prior = LanguagePrior(SENTENCES, 12)
    tokens = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 7, 5, 6, 3, 0]])
    seen, other = prior.surprise(tokens, tokens != 0)
    assert seen < other
    assert seen == prior.surprise(tokens[:1, :5], tokens[:1, :5] != 0)


def test_a_prior_is_estimated_from_text_files(tmp_path):
    (tmp_path / "one.txt").write_text("the dog saw the cat. the cat saw the dog.\n")
    with gzip.open(tmp_path / "two.txt.gz", "wt") as file:
        file.write("a cat sat\n")
    tokenizer = word_tokenizer(["the dog saw a cat . sat"])
    prior = prior_from((tmp_path / "one.txt", tmp_path / "two.txt.gz"), tokenizer)
    texts = ["the dog saw the cat .", "cat the . dog the saw"]
    good, bad = (torch.tensor([tokens]) for tokens in tokenizer.encode(texts))
    assert prior.surprise(good, good != 0) < prior.surprise(bad, bad != 0)
    with pytest.raises(ValueError, match=r"texts: .*missing.* cannot be read"):
        prior_from((tmp_path / "missing",), tokenizer)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="texts: no sentence of at least two tokens"):
        prior_from((tmp_path / "empty.txt",), tokenizer)
