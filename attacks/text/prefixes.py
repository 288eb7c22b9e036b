"""Sentences of a decoder, extended token by token: a later layer's input depends on preceding tokens only."""

import torch
from torch import Tensor

from metaleak.attacks.text.candidates import Candidates
from metaleak.attacks.text.layer_consistency import LayerConsistency
from metaleak.attacks.text.sentences import FITS, Sentence

_KEPT = 1024
"""Number of nearest prefixes that are kept at every position."""


def extended_prefixes(
    candidates: Candidates, consistency: LayerConsistency, end: int | None, count: int
) -> tuple[list[Sentence], list[float]]:
    """Return at most `count` sentences, the longest first, and each one's mean distance from the later layer's space.

    Each prefix is extended by every candidate for the next position, and kept if the new token's input to the later
    layer lies in the space (Petrov et al. 2024, "DAGER", section 4.3). A sentence ends with the token `end`, or where
    no candidate extends it: a sentence that is a prefix of another one cannot be distinguished from it.
    """
    places = int(candidates.places.max()) + 1
    rows, sentences = torch.full((1, places), -1), list[Tensor]()
    for place in range(places):
        at = (candidates.places == place).nonzero().flatten()
        children = rows.repeat_interleave(len(at), dim=0)
        children[:, place] = at.repeat(len(rows))
        distances = consistency.distances(children)[:, place] if len(children) else torch.zeros(0)
        near = distances.argsort()[:_KEPT]
        near = near[distances[near] < FITS]
        extends = set((near // max(1, len(at))).tolist())
        sentences += [row for number, row in enumerate(rows) if number not in extends and place > 0]
        children = children[near]
        ends = candidates.tokens[children[:, place]] == (-1 if end is None else end)
        sentences += list(children[ends])
        rows = children[~ends]
        if not len(rows):
            break
    found = [tuple(row[row >= 0].tolist()) for row in (*sentences, *rows)]
    found = sorted(found, key=len, reverse=True)[:count]
    return found, consistency(found)
