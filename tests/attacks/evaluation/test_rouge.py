import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaleak.attacks.evaluation.rouge import rouge_l, rouge_n
from metaleak.attacks.evaluation.similarity import similarity

SENTENCES = st.lists(st.integers(0, 5), max_size=8)


def test_rouge_is_the_f1_of_common_ngrams_and_subsequences():
    # "the cat sat on the mat" and "the mat sat": three words, the pair "the mat", and two words in order.
    true, made = [1, 2, 3, 4, 1, 5], [1, 5, 3]
    assert rouge_n(made, true, 1) == pytest.approx(2 * 3 / 9)
    assert rouge_n(made, true, 2) == pytest.approx(2 * 1 / 7)
    assert rouge_l(made, true) == pytest.approx(2 * 2 / 9)


@given(SENTENCES, SENTENCES)
def test_rouge_is_symmetric_and_1_for_the_same(one, other):
    for measure in (rouge_l, lambda a, b: rouge_n(a, b, 1), lambda a, b: rouge_n(a, b, 2)):
        assert 0 <= measure(one, other) == measure(other, one) <= 1
        assert measure(one, one) == 1


def test_padding_is_ignored():
    pairing, measures = similarity("tokens", [[[2, 7, 3, 0]]], [[[2, 7, 8, 3]]], padding=0)
    assert pairing.alike.tolist() == [[0.5]]
    assert [one.name for one in measures][2:] == ["ROUGE-1", "ROUGE-2", "ROUGE-L"]
    pairing, _ = similarity("tokens", [[[2, 3, 0, 0]]], [[[2, 3, 0, 0]]], padding=0)
    assert pairing.alike.tolist() == [[1.0]]
