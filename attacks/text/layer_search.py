"""A search for sentences whose inputs to a later layer lie in that layer's input space.

Replacing one token changes the inputs at all other tokens slightly: the more tokens of a sentence are correct, the
nearer each of them is to the space. Local search over single replacements therefore corrects most tokens, and the
positions that it leaves wrong in one sentence are correct in others. The search maintains a population of sentences,
replaces their tokens, and combines the prefix of one with the suffix of another where both are near the space (a
genetic algorithm in which a child replaces the parent that it resembles most, "deterministic crowding", Mahfoud
1995).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.text.candidates import Candidates
from metaleak.attacks.text.layer_consistency import LayerConsistency
from metaleak.attacks.text.sentences import FITS, Sentence

Strengths = Callable[[Tensor], Tensor]
"""Maps which candidates are known to be present, `(n,)` bool, to positive weights for all candidates, `(n,)`."""

_KEPT = 64
"""Size of the population."""

_EXCHANGED = 16
"""Number of sentences whose tokens are replaced in one generation."""

_TRIED = 8
"""Number of single replacements evaluated per sentence, those of the steepest slopes."""

_JOINED = 64
"""Largest number of pairs that are combined in one generation."""

_WIDTH = 12
"""Initial number of candidates tried per position, those of the largest weights; doubled at every restart."""

_SAME = 0.5
"""Sentences that share this fraction of tokens, relative to the longer one, with a found sentence are dropped."""

_FOUND = 1e-2 * FITS
"""Mean distance below which a sentence counts as found."""


@dataclass
class _Population:
    """Sentences `rows (N, P)`, their tokens' `distances (N, P)`, and `settled (N,)` for those at a local optimum."""

    rows: Tensor
    distances: Tensor
    settled: Tensor

    @property
    def lengths(self) -> Tensor:
        return (self.rows >= 0).sum(dim=1)

    @property
    def costs(self) -> Tensor:
        return self.distances.sum(dim=1) / self.lengths

    def at(self, chosen: Tensor) -> "_Population":
        return _Population(self.rows[chosen], self.distances[chosen], self.settled[chosen])

    def replace(self, chosen: Tensor, rows: Tensor, distances: Tensor) -> None:
        self.rows[chosen], self.distances[chosen], self.settled[chosen] = rows, distances, False


class LayerSearch:
    """A search for sentences of `candidates` whose inputs lie in the input space of a later layer.

    A sentence has one candidate at each position up to its last. It ends with the token `end`; if this is `None`, it
    may end at any position.
    """

    def __init__(
        self,
        candidates: Candidates,
        consistency: LayerConsistency,
        strengths: Strengths,
        end: int | None,
        generator: torch.Generator,
    ) -> None:
        self._consistency, self._strengths, self._generator = consistency, strengths, generator
        places = next(
            place for place in range(len(candidates.places) + 1) if not bool((candidates.places == place).any())
        )
        at = [(candidates.places == place).nonzero().flatten() for place in range(places)]
        self._inner = at if end is None else [some[candidates.tokens[some] != end] for some in at]
        whole = next((place for place, some in enumerate(self._inner) if not len(some)), places)
        ends = [some if end is None else some[candidates.tokens[some] == end] for some in at[: whole + 1]]
        self._ends = {place: some for place, some in enumerate(ends) if len(some) and place > 0}
        self._places = max(self._ends, default=-1) + 1
        self._count = len(candidates.tokens)

    def sentences(
        self, count: int, begin: list[Sentence], evaluations: int = 40_000
    ) -> tuple[list[Sentence], list[float]]:
        """Return at most `count` sentences, the found ones first, and the mean distance of each.

        The initial population consists of the sentences in `begin` and of random ones. At most about `evaluations`
        sentences are evaluated.
        """
        found: list[Tensor] = []
        if not self._ends:
            return [], []
        rows = self._rows_of(begin)
        weights, width = self._weights(found), _WIDTH
        kept = self._judged(torch.cat([rows, self._random(max(0, _KEPT - len(rows)), weights, width)]))
        left = evaluations - len(kept.rows)
        while left > 0 and len(found) < count:
            judged, better = self._exchange(kept, weights, width)
            more, joined = self._join(kept)
            left -= judged + more
            # The operators may have reproduced a sentence that was found before.
            kept = self._unlike(kept.at(kept.costs.argsort()), found)
            before = len(found)
            while len(kept.rows) and len(found) < count and float(kept.costs[0]) < _FOUND:
                found.append(kept.rows[0])
                kept = self._unlike(kept, found)
            kept = self._distinct(kept)
            if len(found) > before:
                weights = self._weights(found)
                kept.settled[:] = False
            elif not better and not joined:
                kept, width = kept.at(torch.arange(min(len(kept.rows), _KEPT // 4))), 2 * width
                kept.settled[:] = False
            if len(kept.rows) < _KEPT:
                new = self._judged(self._random(_KEPT - len(kept.rows), weights, width))
                left -= len(new.rows)
                kept = self._unlike(_joined(kept, new), found)
        return self._best(found, kept, count)

    def _best(self, found: list[Tensor], kept: _Population, count: int) -> tuple[list[Sentence], list[float]]:
        """Return the sentences that were found, then the nearest ones that differ enough from all others."""
        chosen = list(found)
        while len(chosen) < count and len(kept.rows):
            kept = kept.at(kept.costs.argsort())
            chosen.append(kept.rows[0])
            kept = self._unlike(kept, chosen)
        sentences = [tuple(row[row >= 0].tolist()) for row in chosen]
        return sentences, self._consistency(sentences)

    def _exchange(self, kept: _Population, weights: Tensor, width: int) -> tuple[int, bool]:
        """Replace tokens where this helps; return how many sentences were evaluated, and whether one improved.

        The replacements tried are those with the largest decrease according to the derivatives: each individually,
        and the best 2, 4, 8 and 16 together, at most one per position.
        """
        parents = (~kept.settled).nonzero().flatten()
        parents = parents[kept.costs[parents].argsort()][:_EXCHANGED]
        if not len(parents):
            return 0, False
        rows = kept.rows[parents]
        options = self._options(weights, width)
        slopes, embeddings = self._consistency.slopes(rows), self._consistency.embeddings
        change = torch.einsum("npd,pad->npa", slopes, embeddings[options])
        change -= (slopes * embeddings[rows]).sum(dim=-1)[..., None]
        inner = torch.arange(rows.shape[1]) < (rows >= 0).sum(dim=1, keepdim=True) - 1
        possible = (options >= 0) & (options != rows[..., None]) & inner[..., None]
        change = change.where(possible, torch.inf)
        least, which = change.min(dim=2)
        tried = []
        values, places = change.flatten(1).topk(min(_TRIED, change[0].numel()), dim=1, largest=False)
        for value, place in zip(values.unbind(1), places.unbind(1), strict=True):
            at, one = place // options.shape[1], place % options.shape[1]
            child = rows.clone()
            child[torch.arange(len(rows)), at] = options[at, one]
            tried.append(torch.where((value < torch.inf)[:, None], child, rows))
        best = options.gather(1, which.mT).mT
        for number in (2, 4, 8, 16):
            order = least.argsort(dim=1).argsort(dim=1)
            tried.append(torch.where((order < number) & (least < 0), best, rows))
        children = torch.stack(tried, dim=1)
        judged = self._judged(children.flatten(0, 1))
        costs, chosen = judged.costs.reshape(children.shape[:2]).min(dim=1)
        better = costs < kept.costs[parents] * (1 - 1e-6)
        chosen += torch.arange(len(parents)) * children.shape[1]
        kept.settled[parents[~better]] = True
        kept.replace(parents[better], judged.rows[chosen[better]], judged.distances[chosen[better]])
        return len(judged.rows), bool(better.any())

    def _join(self, kept: _Population) -> tuple[int, bool]:
        """Combine prefixes and suffixes of pairs; return how many were evaluated, and whether one beat its parent.

        The pairs chosen are those with the smallest mean distance if every token kept its distance.
        """
        number, places = kept.rows.shape
        before = torch.nn.functional.pad(kept.distances.cumsum(dim=1), (1, 0))[:, :places]
        after = kept.distances.sum(dim=1, keepdim=True) - before
        cut, lengths = torch.arange(places), kept.lengths
        promised = (before[:, None] + after[None]) / lengths[None, :, None]
        possible = (cut > 1) & (cut < torch.minimum(lengths[:, None], lengths[None])[..., None])
        possible &= ~torch.eye(number, dtype=torch.bool)[..., None]
        value, cuts = promised.where(possible, torch.inf).min(dim=2)
        nearest, pairs = value.flatten().topk(min(3 * _JOINED, value.numel()), largest=False)
        pairs = pairs[nearest < torch.inf]
        first, second, at = pairs // number, pairs % number, cuts.flatten()[pairs]
        children = torch.where(cut < at[:, None], kept.rows[first], kept.rows[second])
        known = {tuple(row) for row in kept.rows.tolist()}
        new = []
        for place, row in enumerate(map(tuple, children.tolist())):
            if row not in known:
                known.add(row)
                new.append(place)
        new = new[:_JOINED]
        if not new:
            return 0, False
        judged = self._judged(children[new])
        parents = torch.where(2 * at >= lengths[second], first, second)[new]
        better = False
        for child in judged.costs.argsort(descending=True).tolist():
            parent = parents[child]
            if judged.costs[child] < kept.costs[parent] * (1 - 1e-6):
                kept.replace(parent, judged.rows[child], judged.distances[child])
                better = True
        return len(new), better

    def _judged(self, rows: Tensor) -> _Population:
        distances = self._consistency.distances(rows) if len(rows) else rows.float()
        return _Population(rows, distances, torch.zeros(len(rows), dtype=torch.bool))

    def _weights(self, found: list[Tensor]) -> Tensor:
        known = torch.zeros(self._count, dtype=torch.bool)
        for row in found:
            known[row[row >= 0]] = True
        strengths = self._strengths(known)
        # A token of a found sentence seldom occurs in another one, but no candidate is excluded.
        return strengths / strengths.max() * torch.where(known, 0.1, 1.0) + 1e-4

    def _options(self, weights: Tensor, width: int) -> Tensor:
        """Return the candidates of the largest weights per position, end tokens excluded, `(P, A)`, -1 for none."""
        inner = self._inner[: self._places]
        wide = max(1, min(width, max(len(some) for some in inner)))
        options = torch.full((self._places, wide), -1)
        for place, some in enumerate(inner):
            strongest = some[weights[some].argsort(descending=True)][:wide]
            options[place, : len(strongest)] = strongest
        return options

    def _random(self, count: int, weights: Tensor, width: int) -> Tensor:
        """Return sentences `(count, P)` of candidates drawn with probabilities proportional to their weights."""
        rows = torch.full((count, self._places), -1)
        if not count:
            return rows
        options = self._options(weights, width)
        for place, some in enumerate(options):
            some = some[some >= 0]
            if len(some):
                rows[:, place] = some[self._drawn(weights[some], count)]
        last = torch.tensor(list(self._ends))
        strongest = torch.stack([weights[some].max() for some in self._ends.values()])
        for row, end in enumerate(last[self._drawn(strongest, count)].tolist()):
            ends = self._ends[end]
            rows[row, end] = ends[self._drawn(weights[ends], 1)]
            rows[row, end + 1 :] = -1
        return rows

    def _drawn(self, weights: Tensor, count: int) -> Tensor:
        return torch.multinomial(weights, count, replacement=True, generator=self._generator)

    def _rows_of(self, sentences: list[Sentence]) -> Tensor:
        rows = torch.full((len(sentences), self._places), -1)
        for row, sentence in zip(rows, sentences, strict=True):
            row[: len(sentence)] = torch.tensor(sentence)[: self._places]
        return rows[(rows >= 0).any(dim=1)]

    def _unlike(self, kept: _Population, found: list[Tensor]) -> _Population:
        """Return the sentences that have few tokens in common with those found."""
        alike = torch.zeros(len(kept.rows), dtype=torch.bool)
        for row in found:
            longer = kept.lengths.clamp(min=int((row >= 0).sum()))
            same = ((kept.rows == row) & (row >= 0)).sum(dim=1)
            # A sentence of the batch may share much with another one.
            other = (kept.costs < _FOUND) & (kept.rows != row).any(dim=1)
            alike |= (same >= _SAME * longer) & ~other
        return kept.at(~alike)

    def _distinct(self, kept: _Population) -> _Population:
        """Return the sentences without duplicates."""
        first = {tuple(row): place for place, row in reversed(list(enumerate(kept.rows.tolist())))}
        return kept.at(torch.tensor(sorted(first.values()), dtype=torch.int64))


def _joined(first: _Population, second: _Population) -> _Population:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return _Population(*(torch.cat(pair) for pair in pairs))
