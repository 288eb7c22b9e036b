"""Sentences of a decoder, token by token: what a later layer takes of a token depends on those before it alone."""

import torch
from torch import Tensor

from metaleak.attacks.text.candidates import Candidates
from metaleak.attacks.text.layer_consistency import LayerConsistency
from metaleak.attacks.text.sentences import FITS, Sentence

_KEPT = 1024
"""So many of the nearest begins are kept at every place."""


def extended_prefixes(
    candidates: Candidates, consistency: LayerConsistency, end: int | None, count: int
) -> tuple[list[Sentence], list[float]]:
    """Return at most `count` sentences, the longest first, and each one's mean distance from the later layer's space.

    The begin of a sentence is extended by every candidate of the next place, and kept while the new token's input to
    the later layer lies in the space (Petrov et al. 2024, "DAGER", section 4.3). A sentence ends with the token
    `end`, or where nothing extends it: one that is the begin of another in full cannot be told from it.
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
