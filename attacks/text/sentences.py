"""Assignment of candidate tokens to the sentences of a batch, improved until it is consistent with the gradient."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, combinations_with_replacement

import torch

from metaleak.attacks.text.candidates import Candidates

Sentence = tuple[int, ...]
"""A sentence, as the index of the candidate at each position."""

Costs = Callable[[list[Sentence]], list[float]]
"""Maps an arrangement to the cost of each of its sentences, at least 0; 0 is consistent with the observation."""

_ARRANGEMENTS = 24
"""Largest number of combinations of sentence lengths that are tried."""

FITS = 1e-4
"""Cost per sentence below which an arrangement is accepted as correct, and the search stops."""


def single_sentence(candidates: Candidates, end: int | None) -> Sentence:
    """Return the sentence of the nearest candidate at every position, up to the token `end`.

    If `end` is `None`, the sentence ends before the first position without a candidate in the space.
    """
    best: dict[int, int] = {}
    for number, place in enumerate(candidates.places.tolist()):
        if place not in best or candidates.ratios[number] < candidates.ratios[best[place]]:
            best[place] = number
    sentence: list[int] = []
    for place in range(_length(best)):
        if end is None and candidates.ratios[best[place]] > 1:
            break
        sentence.append(best[place])
        if candidates.tokens[best[place]] == end:
            break
    return tuple(sentence)


def told_apart(
    candidates: Candidates,
    count: int,
    end: int | None,
    cost: Costs,
    generator: torch.Generator,
    restarts: int = 6,
    evaluations: int = 6000,
) -> tuple[list[Sentence], list[float]]:
    """Return `count` sentences of `candidates`, and the cost of each.

    Every candidate occurs in at least one sentence; a sentence ends with the token `end`, or at the last position.
    The search starts from random arrangements, `restarts` for each combination of sentence lengths that is
    consistent with the positions of the end tokens. It swaps tokens and suffixes of two sentences while this lowers
    the sum of costs, and evaluates at most about `evaluations` arrangements.
    """
    at, tokens = _at_places(candidates), candidates.tokens.tolist()
    best: tuple[float, list[Sentence], list[float]] = (float("inf"), [], [])
    for lengths in _lengths(at, tokens, count, end):
        for _ in range(restarts):
            sentences = _random_arrangement(at, tokens, lengths, end, generator)
            total, sentences, costs, evaluations = _improved(sentences, at, tokens, end, cost, evaluations)
            if total < best[0]:
                best = total, sentences, costs
            if total < FITS * count or evaluations <= 0:
                return best[1], best[2]
    return best[1], best[2]


def improved(
    sentences: list[Sentence], candidates: Candidates, end: int | None, cost: Costs, evaluations: int = 6000
) -> tuple[list[Sentence], list[float]]:
    """Return the sentences after all swaps and replacements that lower the sum of costs, and the cost of each.

    Any candidate may replace another one, and a candidate may occur in no sentence. At most about `evaluations`
    arrangements are evaluated.
    """
    at, tokens = _at_places(candidates), candidates.tokens.tolist()
    _, sentences, costs, _ = _improved(sentences, at, tokens, end, cost, evaluations, free=True)
    return sentences, costs


def _at_places(candidates: Candidates) -> list[list[int]]:
    """Return the candidates at every position, up to the first position that has none."""
    places: dict[int, list[int]] = {}
    for number, place in enumerate(candidates.places.tolist()):
        places.setdefault(place, []).append(number)
    return [places[place] for place in range(_length(places))]


def _length(places: Mapping[int, object]) -> int:
    """Return the number of consecutive positions, from the first, that have a candidate."""
    return next(place for place in range(len(places) + 1) if place not in places)


def _lengths(at: list[list[int]], tokens: list[int], count: int, end: int | None) -> Iterator[tuple[int, ...]]:
    """Yield combinations of sentence lengths that are consistent with the candidates at every position."""
    ends = [place + 1 for place, some in enumerate(at) if any(tokens[one] == end for one in some)]
    if not ends or ends[-1] < len(at):
        ends.append(len(at))
    yielded = 0
    for more in combinations_with_replacement(ends, max(0, count - len(ends))):
        lengths = tuple(sorted((*ends, *more)))[-count:]
        enough = all(
            sum(tokens[one] != end for one in some) <= sum(length > place + 1 or end is None for length in lengths)
            for place, some in enumerate(at[:-1])
        )
        if enough:
            yield lengths
            yielded += 1
        if yielded == _ARRANGEMENTS:
            return
    if not yielded:
        yield tuple(sorted(([*ends, *[ends[-1]] * count])[:count]))


def _random_arrangement(
    at: list[list[int]], tokens: list[int], lengths: Sequence[int], end: int | None, generator: torch.Generator
) -> list[Sentence]:
    rows: list[list[int]] = [[] for _ in lengths]
    for place, some in enumerate(at):
        inner = [one for one in some if tokens[one] != end] or some
        last = [one for one in some if tokens[one] == end] or some
        going = [row for row, length in enumerate(lengths) if length > place + 1]
        order = torch.randperm(len(going), generator=generator).tolist()
        for turn, chosen in enumerate(order):
            rows[going[chosen]].append(inner[turn % len(inner)])
        for row, length in enumerate(lengths):
            if length == place + 1:
                rows[row].append(last[0])
    return [tuple(row) for row in rows]


def _improved(
    sentences: list[Sentence],
    at: list[list[int]],
    tokens: list[int],
    end: int | None,
    cost: Costs,
    left: int,
    free: bool = False,
) -> tuple[float, list[Sentence], list[float], int]:
    """Return an arrangement that no move at a single position improves, its costs, and the evaluations left.

    At most about `left` evaluations are used. With `free`, a candidate may be left out of all sentences.
    """
    costs = cost(sentences)
    total = sum(costs)
    changed = True
    while changed and left > 0:
        changed = False
        for place in range(1, len(at)):
            if left <= 0:
                break
            # Only the best move of a position is made: few moves improve the arrangement.
            tried = [(cost(other), other) for other in _moves(sentences, place, at, tokens, end, free)]
            left -= len(tried)
            found, other = min(tried, key=lambda one: sum(one[0]), default=(costs, sentences))
            if sum(found) < total * (1 - 1e-9):
                sentences, costs, total, changed = other, found, sum(found), True
    return total, sentences, costs, left


def _moves(
    sentences: list[Sentence], place: int, at: list[list[int]], tokens: list[int], end: int | None, free: bool
) -> Iterator[list[Sentence]]:
    """Yield the arrangements that differ at `place`, or in the suffixes of two sentences from there on."""
    for first, second in combinations(range(len(sentences)), 2):
        one, other = sentences[first], sentences[second]
        if min(len(one), len(other)) <= place or one[place:] == other[place:]:
            continue
        if place + 1 < min(len(one), len(other)) and one[place] != other[place]:
            yield _with(
                sentences,
                {
                    first: (*one[:place], other[place], *one[place + 1 :]),
                    second: (*other[:place], one[place], *other[place + 1 :]),
                },
            )
        yield _with(sentences, {first: one[:place] + other[place:], second: other[:place] + one[place:]})
    standing = [one[place] for one in sentences if len(one) > place]
    for row, one in enumerate(sentences):
        # A candidate that another sentence has at this position, too, may be replaced.
        if len(one) > place + 1 and (free or standing.count(one[place]) > 1):
            for other_token in at[place]:
                if other_token != one[place] and tokens[other_token] != end:
                    yield _with(sentences, {row: (*one[:place], other_token, *one[place + 1 :])})


def _with(sentences: list[Sentence], changes: dict[int, Sentence]) -> list[Sentence]:
    return [changes.get(row, one) for row, one in enumerate(sentences)]
