"""ROUGE of token sequences (Lin 2004): n-grams and the longest subsequence that two sentences have in common.

It is computed on token numbers, since attacks return these and the evaluation has no vocabulary. ROUGE libraries take
text and split it into words themselves.
"""

from collections import Counter
from collections.abc import Sequence


def rouge_n(made: Sequence[int], true: Sequence[int], size: int) -> float:
    """Return ROUGE-n of two sentences for n = `size`, as F1 in [0, 1].

    If one of them has no such n-gram, it is 1 for equal sentences and else 0.

    Example:
        >>> rouge_n([5, 6, 7], [5, 6, 8], size=2)
        0.5
    """
    made_grams, true_grams = (
        Counter(tuple(one[place : place + size]) for place in range(len(one) - size + 1)) for one in (made, true)
    )
    if not made_grams or not true_grams:
        return float(list(made) == list(true))
    return _f1(sum((made_grams & true_grams).values()), made_grams.total(), true_grams.total())


def rouge_l(made: Sequence[int], true: Sequence[int]) -> float:
    """Return ROUGE-L of two sentences, the F1 of their longest common subsequence, in [0, 1]; 1 if both are empty.

    Example:
        >>> rouge_l([5, 6, 7], [5, 7])
        0.8
    """
    if not made or not true:
        return float(not made and not true)
    lengths = [0] * (len(true) + 1)
    for token in made:
        before = 0
        for place, other in enumerate(true, start=1):
            before, lengths[place] = (
                lengths[place],
                before + 1 if token == other else max(lengths[place], lengths[place - 1]),
            )
    return _f1(lengths[-1], len(made), len(true))


def _f1(common: int, one: int, other: int) -> float:
    return 2 * common / (one + other)
