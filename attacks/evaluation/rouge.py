"""ROUGE of token sequences (Lin 2004): the overlap of two sentences in words, in pairs of words, and in order.

Computed on tokens as they are, for an attack gives tokens and its evaluation knows no vocabulary; libraries take
text, which they split into words of their own.
"""

from collections import Counter
from collections.abc import Sequence


def rouge_n(made: Sequence[int], true: Sequence[int], size: int) -> float:
    """Return the F1 of n-grams of this `size` that two sentences have in common, in [0, 1].

    Two sentences without such an n-gram have 1 when they are equal, else 0.
    """
    ours, theirs = (
        Counter(tuple(one[place : place + size]) for place in range(len(one) - size + 1)) for one in (made, true)
    )
    if not ours or not theirs:
        return float(list(made) == list(true))
    return _f1(sum((ours & theirs).values()), sum(ours.values()), sum(theirs.values()))


def rouge_l(made: Sequence[int], true: Sequence[int]) -> float:
    """Return the F1 of the longest common subsequence of two sentences, in [0, 1]; two empty ones have 1."""
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


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs)
