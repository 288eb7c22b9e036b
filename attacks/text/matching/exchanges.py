"""Local search over words, evaluated by the gradient of the changed sentences.

The gradient of the true sentences equals the observed one, so that the result of descent over embeddings can be
improved by discrete changes: other orders of a sentence's words, and other words at single positions.
"""

import torch
from torch import Tensor

from metaleak.attacks.text.matching.gradient_distance import GradientDistance, Sentences
from metaleak.attacks.text.matching.rearrangements import rearrangements

_POOL = 2
"""Number of nearest words of every position that are also tried at all other positions."""


def exchanged(
    words: Tensor,
    nearest: Tensor,
    table: Tensor,
    labels: Tensor,
    distance: GradientDistance,
    sentences: Sentences,
    rounds: int,
    proposals: int,
    generators: list[torch.Generator],
) -> Tensor:
    """Return sentences `(L, n, T)` after `rounds` in which the best of `proposals` changes is applied per learner.

    `words (L, n, T)` are the initial sentences, `nearest (L, n, T, k)` the candidate words of every position, nearest
    first, `table (V, d)` the word embeddings and `labels (L, n)` the sentences' labels. Half of the proposals reorder
    a sentence, see `rearrangements`. The other half replace one word, by one of those nearest at its position or by
    one of those nearest at any position.
    """
    learners = torch.arange(len(words), device=words.device)
    for _ in range(rounds):
        tried = _proposals(words, nearest, sentences, proposals, generators)
        with torch.no_grad():
            losses = distance(table[tried], labels[:, None].expand(-1, proposals, -1), tried)
        words = tried[learners, losses.argmin(dim=1)]
    return words


def _proposals(
    words: Tensor, nearest: Tensor, sentences: Sentences, count: int, generators: list[torch.Generator]
) -> Tensor:
    """Return changed sentences `(L, count, n, T)`, the first of every learner unchanged."""
    size, length = words.shape[1:]
    device = words.device
    tried = words[:, None].repeat(1, count, 1, 1)
    free = (~sentences.known).cpu()
    number = torch.arange(1, count)
    changed, ordered = number[number % 2 == 0], number[number % 2 == 1]
    for row, generator in enumerate(generators):
        places = [free[row, one].nonzero().flatten() for one in range(size)]
        if not all(len(some) for some in places):
            continue
        draws = torch.rand(count, 3, generator=generator)
        of = torch.randint(size, (count,), generator=generator)
        begins, ends = (torch.tensor([int(some[end]) for some in places])[of] for end in (0, -1))
        at = begins + (draws[:, 0] * (ends - begins + 1)).long()
        near = nearest[row, of.to(device), at.to(device), (draws[:, 1] * nearest.shape[-1]).long().to(device)]
        pool = nearest[row][(~sentences.known)[row]][:, :_POOL].flatten()
        put = torch.where((draws[:, 2] < 0.5).to(device), near, pool[(draws[:, 1] * len(pool)).long().to(device)])
        tried[row, changed.to(device), of[changed].to(device), at[changed].to(device)] = put[changed.to(device)]
        for one in range(size):
            mine = ordered[of[ordered] == one]
            first, last = int(places[one][0]), int(places[one][-1]) + 1
            # The first order is the identity.
            orders = rearrangements(first, last, length, len(mine) + 1, generator)[1:].to(device)
            tried[row, mine.to(device), one] = words[row, one][orders]
    return tried
