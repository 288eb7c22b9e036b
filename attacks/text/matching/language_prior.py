"""A trigram language model over tokens, which ranks the orders of a sentence's words.

It uses interpolated absolute discounting with a single discount (Chen and Goodman 1999, section 2.6): each order of
n-grams passes its discounted probability mass to the next lower order. The unigram distribution counts the distinct
tokens that precede a token, as in Kneser-Ney smoothing (section 2.7).
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from metaleak.clients.models.tokenizer import Tokenizer

_DISCOUNT = 0.75
_LARGEST = 64 << 20
"""Largest size of the text in one file, in bytes."""

_SENTENCE_ENDS = re.compile(r"(?<=[.!?]) +")


class LanguagePrior:
    """A trigram model over a `vocabulary` of tokens, estimated from `sentences` that include their special tokens.

    Positions before the first token of a sentence count as token 0. Raises `ValueError` without a pair of tokens.
    """

    def __init__(self, sentences: Iterable[Sequence[int]], vocabulary: int) -> None:
        rows = [[0, *sentence] for sentence in sentences if len(sentence) > 1]
        if not rows:
            raise ValueError("texts: no sentence of at least two tokens")
        tokens = torch.tensor([token for row in rows for token in row])
        # A trigram ends at every position with two earlier positions in the same row.
        inner = torch.tensor([place > 1 for row in rows for place in range(len(row))])
        last = inner.nonzero().flatten()
        self._vocabulary = vocabulary
        first, second, third = (tokens[last - back] for back in (2, 1, 0))
        # Trigrams are keyed by the index of their first two tokens, so that keys stay below 2^63.
        self._pairs = torch.unique(first * vocabulary + second)
        context = torch.searchsorted(self._pairs, first * vocabulary + second)
        self._trigrams = _Counts(context * vocabulary + third, vocabulary)
        self._bigrams = _Counts(second * vocabulary + third, vocabulary)
        kinds = torch.bincount(self._bigrams.keys % vocabulary, minlength=vocabulary).double()
        lent = _DISCOUNT * (kinds > 0).sum() / vocabulary
        self._lowest = ((kinds - _DISCOUNT).clamp(min=0) + lent) / kinds.sum()

    def to(self, device: torch.device | str) -> "LanguagePrior":
        """Return the same model with all tensors on `device`."""
        moved = object.__new__(LanguagePrior)
        moved._vocabulary = self._vocabulary
        moved._pairs, moved._lowest = self._pairs.to(device), self._lowest.to(device)
        moved._trigrams, moved._bigrams = self._trigrams.to(device), self._bigrams.to(device)
        return moved

    def surprise(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of each sentence, in nats per token after the first.

        `tokens` are `(..., T)` int64, and `present (..., T)` bool is false for padding; the result is `(...)` float64
        on the device of `tokens`.
        """
        before = torch.cat([torch.zeros_like(tokens[..., :1]), tokens[..., :-2]], dim=-1)
        second, third = tokens[..., :-1], tokens[..., 1:]
        lower = self._lowest[third]
        lower = self._bigrams.likelihood(second, third, lower)
        pair = before * self._vocabulary + second
        place = torch.searchsorted(self._pairs, pair.contiguous()).clamp(max=len(self._pairs) - 1)
        seen = self._pairs[place] == pair
        likelihood = torch.where(seen, self._trigrams.likelihood(place, third, lower), lower)
        counted = present[..., 1:] & present[..., :-1]
        total = torch.where(counted, -likelihood.log(), 0.0).sum(dim=-1)
        return total / counted.sum(dim=-1).clamp(min=1)


class _Counts:
    """How often tokens follow contexts: sorted `keys` of context times vocabulary plus token, and their counts."""

    def __init__(self, keys: Tensor, vocabulary: int) -> None:
        self.keys, self._counts = torch.unique(keys, return_counts=True)
        self._vocabulary = vocabulary
        self._contexts, inverse = torch.unique(self.keys // vocabulary, return_inverse=True)
        self._kinds = torch.bincount(inverse).double()
        self._totals = torch.bincount(inverse, weights=self._counts.double())

    def to(self, device: torch.device | str) -> "_Counts":
        moved = object.__new__(_Counts)
        moved._vocabulary = self._vocabulary
        for name in ("keys", "_counts", "_contexts", "_kinds", "_totals"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def likelihood(self, context: Tensor, token: Tensor, lower: Tensor) -> Tensor:
        """Return the likelihood of `token` after `context`, with the discounted mass distributed as `lower`."""
        count = torch.where(*_found(self.keys, context * self._vocabulary + token, self._counts.double()))
        known, total, _ = _found(self._contexts, context, self._totals)
        kinds = _found(self._contexts, context, self._kinds)[1]
        higher = ((count - _DISCOUNT).clamp(min=0) + _DISCOUNT * kinds * lower) / total
        return torch.where(known, higher, lower)


def _found(keys: Tensor, wanted: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return whether each of `wanted` is in the sorted `keys`, the value at its insertion point, and a zero."""
    place = torch.searchsorted(keys, wanted.contiguous()).clamp(max=len(keys) - 1)
    return keys[place] == wanted, values[place], torch.zeros((), dtype=values.dtype, device=values.device)


@lru_cache(maxsize=4)
def prior_from(texts: tuple[Path, ...], tokenizer: Tokenizer) -> LanguagePrior:
    """Return the language model of the sentences in `texts`, which are files of plain or gzipped text.

    Raises `ValueError` in one line for a file that cannot be read or is too large.
    """
    sentences = [sentence for path in texts for line in _lines(path) for sentence in _SENTENCE_ENDS.split(line)]
    return LanguagePrior(tokenizer.encode(sentences), tokenizer.size)


def _lines(path: Path) -> list[str]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"texts: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > _LARGEST:
        raise ValueError(f"texts: {path} holds more than {_LARGEST >> 20} MiB")
    # WikiText (Merity et al. 2017) marks punctuation within words by @ signs, and words left out by <unk>.
    plain = re.sub(r" @(.)@ ", r"\1", content.decode("utf-8", errors="replace")).replace("<unk>", " ")
    return [line.strip() for line in plain.splitlines() if line.strip()]
