"""With a distance that counts the positions at which a sentence differs from the true one."""

import torch

from metaleak.attacks.text.matching.exchanges import exchanged
from metaleak.attacks.text.matching.gradient_distance import Sentences

TRUE = torch.tensor([[[2, 9, 5, 7, 4, 3]], [[2, 4, 8, 3, 0, 0]]])
KNOWN = (TRUE == 2) | (TRUE == 3) | (TRUE == 0)
SENTENCES = Sentences(torch.where(KNOWN, TRUE, 1), KNOWN, TRUE != 0)
TABLE = torch.eye(12)


def differing(embeddings, labels, words):
    assert torch.equal(embeddings.argmax(dim=-1), words)
    assert labels.shape == words.shape[:3]
    return (words != TRUE[:, None]).float().sum(dim=(-1, -2))


def improved(words, nearest, rounds=30):
    labels, generators = torch.zeros(2, 1, dtype=torch.int64), [torch.Generator().manual_seed(row) for row in (0, 1)]
    return exchanged(words, nearest, TABLE, labels, differing, SENTENCES, rounds, 20, generators)


def test_nearest_words_and_other_orders_are_tried_and_known_tokens_stay():
    words = torch.tensor([[[2, 7, 9, 5, 11, 3]], [[2, 8, 6, 3, 0, 0]]])
    nearest = words[..., None].repeat(1, 1, 1, 3)
    nearest[0, 0, 4, 2], nearest[1, 0, 1, 1] = 4, 4
    assert torch.equal(improved(words, nearest), TRUE)


def test_no_change_makes_a_sentence_worse():
    assert torch.equal(improved(TRUE, TRUE[..., None], rounds=3), TRUE)
    words = torch.where(KNOWN, TRUE, 11)
    assert torch.equal(improved(words, words[..., None], rounds=3), words)
