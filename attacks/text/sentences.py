"""Telling apart the sentences of a batch from the gradient of one query matrix of the first layer.

The derivative by a token's query is a combination of the keys of its own sentence, head by head, whose coefficients
add up to 0 (those of a softmax do). With the inputs known the gradient gives these derivatives, and the model the keys:
an arrangement of the tokens in sentences is the better the less of the derivatives lies outside the differences of the
keys. Nothing is told where a sentence has more tokens than a head has dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, combinations_with_replacement

import torch
from torch import Tensor

from metaleak.attacks.text.candidates import Candidates

Sentence = tuple[int, ...]
"""A sentence: which of the candidates stands at each place."""

Cost = Callable[[Sentence, frozenset[int]], float]
"""How little a sentence goes with what was observed, 0 or more, and which of its tokens other sentences share."""

_ARRANGEMENTS = 24
"""So many arrangements of the sentences' lengths are tried at most."""

_FITS = 1e-4
"""An arrangement of this cost a sentence is the right one, and no other is tried."""


@dataclass(frozen=True, eq=False)
class HeadConsistency:
    """How far the derivatives by a sentence's queries lie outside its keys, head by head.

    `derivatives (n, H, d)` by the query of each candidate, `keys (n, H, d)` of each, float64.
    """

    derivatives: Tensor
    keys: Tensor
    _kept: dict[tuple[Sentence, frozenset[int]], float] = field(default_factory=dict)

    def __call__(self, sentence: Sentence, shared: frozenset[int]) -> float:
        """Return the part of the squared derivatives that lies outside, 0 where nothing can be told."""
        known = self._kept.get((sentence, shared))
        if known is not None:
            return known
        own = [one for one in sentence if one not in shared]
        value = 0.0
        if own and 1 < len(sentence) <= self.keys.shape[2]:
            keys = self.keys[list(sentence)]
            basis, _ = torch.linalg.qr((keys[1:] - keys[:1]).permute(1, 2, 0))
            derivatives = self.derivatives[own].permute(1, 0, 2)
            outside = derivatives - derivatives @ basis @ basis.mT
            parts = outside.square().sum(dim=(0, 2)) / derivatives.square().sum(dim=(0, 2)).clamp(min=1e-300)
            value = float(parts.mean())
        self._kept[sentence, shared] = value
        return value


def head_consistency(
    candidates: Candidates, gradient: Tensor, key_weight: Tensor, key_bias: Tensor, heads: int
) -> HeadConsistency:
    """Return the consistency of sentences made of `candidates` with the `gradient (d, d)` of a query matrix."""
    derivatives = torch.linalg.lstsq(candidates.inputs.mT, gradient.double().mT, driver="gelsd").solution
    keys = candidates.inputs @ key_weight.double().mT + key_bias.double()
    return HeadConsistency(derivatives.unflatten(1, (heads, -1)), keys.unflatten(1, (heads, -1)))


def single_sentence(candidates: Candidates) -> Sentence:
    """Return the sentence of the nearest candidate at every place, up to the first place that has none."""
    best: dict[int, int] = {}
    for number, place in enumerate(candidates.places.tolist()):
        if place not in best or candidates.ratios[number] < candidates.ratios[best[place]]:
            best[place] = number
    return tuple(best[place] for place in range(_length(best)))


def told_apart(
    candidates: Candidates,
    count: int,
    end: int | None,
    cost: Cost,
    generator: torch.Generator,
    restarts: int = 6,
) -> tuple[list[Sentence], list[float]]:
    """Return `count` sentences of `candidates`, and the cost of each.

    Every candidate is in one sentence at least; a sentence ends with the token `end`, or at the last place. Begins
    at random arrangements, `restarts` for each way in which the sentences' lengths go with the places of the ends,
    and exchanges tokens and rests of two sentences while that lowers the sum of costs.
    """
    places: dict[int, list[int]] = {}
    for number, place in enumerate(candidates.places.tolist()):
        places.setdefault(place, []).append(number)
    at = [places[place] for place in range(_length(places))]
    tokens = candidates.tokens.tolist()
    best: tuple[float, list[Sentence], list[float]] = (float("inf"), [], [])
    for lengths in _lengths(at, tokens, count, end):
        for _ in range(restarts):
            sentences = _random_arrangement(at, tokens, lengths, end, generator)
            total, sentences, costs = _improved(sentences, at, tokens, end, cost)
            if total < best[0]:
                best = total, sentences, costs
            if total < _FITS * count:
                return best[1], best[2]
    return best[1], best[2]


def _length(places: dict[int, object] | dict[int, int] | dict[int, list[int]]) -> int:
    """Return how many places from the first on have a candidate."""
    return next(place for place in range(len(places) + 1) if place not in places)


def _lengths(at: list[list[int]], tokens: list[int], count: int, end: int | None) -> Iterator[tuple[int, ...]]:
    """Yield lengths of the sentences that go with the candidates at every place, at most a few."""
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
    sentences: list[Sentence], at: list[list[int]], tokens: list[int], end: int | None, cost: Cost
) -> tuple[float, list[Sentence], list[float]]:
    costs = _costs(sentences, cost)
    total = sum(costs)
    improved = True
    while improved:
        improved = False
        for place in range(1, len(at)):
            # The best move of a place is made: few are better than none.
            tried = [(_costs(other, cost), other) for other in _moves(sentences, place, at, tokens, end)]
            found, other = min(tried, key=lambda one: sum(one[0]), default=(costs, sentences))
            if sum(found) < total * (1 - 1e-9):
                sentences, costs, total, improved = other, found, sum(found), True
    return total, sentences, costs


def _moves(
    sentences: list[Sentence], place: int, at: list[list[int]], tokens: list[int], end: int | None
) -> Iterator[list[Sentence]]:
    """Yield the arrangements that differ at `place`, or in the rests of two sentences from there on."""
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
        # What another sentence has here too may give way to another candidate.
        if len(one) > place + 1 and standing.count(one[place]) > 1:
            for other_token in at[place]:
                if other_token != one[place] and tokens[other_token] != end:
                    yield _with(sentences, {row: (*one[:place], other_token, *one[place + 1 :])})


def _with(sentences: list[Sentence], changes: dict[int, Sentence]) -> list[Sentence]:
    return [changes.get(row, one) for row, one in enumerate(sentences)]


def _costs(sentences: list[Sentence], cost: Cost) -> list[float]:
    counted: dict[int, int] = {}
    for sentence in sentences:
        for one in sentence:
            counted[one] = counted.get(one, 0) + 1
    return [cost(one, frozenset(token for token in one if counted[token] > 1)) for one in sentences]
