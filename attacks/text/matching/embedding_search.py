"""The search for word embeddings whose gradient matches the observed one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metaleak.attacks.text.matching.exchanges import exchanged
from metaleak.attacks.text.matching.gradient_distance import GradientDistance, Sentences
from metaleak.attacks.text.matching.language_prior import LanguagePrior
from metaleak.attacks.text.matching.rearrangements import rearrangements, shuffles
from metaleak.clients.models import TextModel

Orders = Callable[[int, int, int, int, torch.Generator], Tensor]
"""Draws permutations of a sentence's positions, see `rearrangements`."""


_NONE = -2.0
"""A value below any cosine, for words that are excluded."""


class Settings(Protocol):
    """The settings of the search, see `TextMatching`."""

    @property
    def candidates(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def decay_every(self) -> int: ...
    @property
    def from_step(self) -> int: ...
    @property
    def every(self) -> int: ...
    @property
    def proposals(self) -> int: ...
    @property
    def prior(self) -> float: ...
    @property
    def exchanges(self) -> int: ...
    @property
    def nearest(self) -> int: ...


class Words:
    """The words that embeddings are decoded to by cosine: those of the `table (V, d)` except special tokens.

    If the gradient `observed (L, V, d)` of the table is given, only words whose row is not 0 are allowed.
    """

    def __init__(self, model: TextModel, table: Tensor, observed: Tensor | None) -> None:
        self.table, self.padding = table, model.padding
        self.norm = float(table.norm(dim=1).mean())
        self._unit = F.normalize(table, dim=-1)
        special = [token for token in (model.padding, model.begin, model.end) if token is not None]
        excluded = torch.zeros(1 if observed is None else len(observed), len(table), dtype=torch.bool)
        self._excluded = excluded.to(table.device)
        if observed is not None:
            self._excluded |= observed.abs().amax(dim=-1) == 0
        self._excluded[:, special] = True
        # If this excludes every word, all are allowed.
        self._excluded &= ~self._excluded.all(dim=1, keepdim=True)

    def nearest(self, embeddings: Tensor, sentences: Sentences) -> Tensor:
        """Return the nearest words of `embeddings (L, P, n, T, d)`, `(L, P, n, T)`; known tokens are unchanged.

        The P candidates are processed one at a time: similarities to all words take V numbers per token.
        """
        found = []
        for one in embeddings.unbind(dim=1):
            words = self._likeness(one).argmax(dim=-1)
            found.append(torch.where(sentences.known, sentences.tokens, words))
        return torch.stack(found, dim=1)

    def several(self, embeddings: Tensor, count: int) -> Tensor:
        """Return the `count` nearest words of `embeddings (L, n, T, d)`, `(L, n, T, count)`.

        If fewer words are allowed, the nearest one is repeated. At most V words are returned per token.
        """
        likeness, words = self._likeness(embeddings).topk(min(count, len(self.table)), dim=-1)
        return torch.where(likeness > _NONE, words, words[..., :1])

    def _likeness(self, embeddings: Tensor) -> Tensor:
        likeness = F.normalize(embeddings.detach(), dim=-1) @ self._unit.mT
        return likeness.masked_fill(self._excluded[:, None, None], _NONE)


@dataclass
class EmbeddingSearch:
    """The search for the `sentences` of L learners in one batch, independently for each learner.

    Each learner has its own random generator in `generators`, so that its result does not depend on the others.
    """

    settings: Settings
    distance: GradientDistance
    sentences: Sentences
    words: Words
    prior: LanguagePrior | None
    generators: list[torch.Generator]

    def best(self, labels: Tensor | None, done: Callable[[int], None]) -> list[tuple[Tensor, Tensor]]:
        """Return sentences `(L, n, T)` int64, and the cosine of their gradient with the observed one, `(L,)`.

        There is one pair for the result of descent, and one for that after exchanges of words, if there are any.
        `labels` are `(L, n)`; if `None`, they are drawn together with the initial embeddings. `done` is called with
        the number of steps completed.
        """
        settings = self.settings
        free, labels = self._start(labels)
        free.requires_grad_()
        optimizer = torch.optim.Adam([free], lr=settings.rate)
        decay = torch.optim.lr_scheduler.StepLR(optimizer, settings.decay_every, settings.decay)
        least = torch.full((len(free),), torch.inf, dtype=free.dtype, device=free.device)
        best = free.detach().clone()
        for step in range(1, settings.steps + 1):
            loss = self._loss(free[:, None], labels[:, None])[:, 0]
            better = loss.detach() < least
            best = torch.where(better[:, None, None, None], free.detach(), best)
            least = torch.where(better, loss.detach(), least)
            optimizer.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            decay.step()
            if step >= settings.from_step and step % settings.every == 0:
                self._reorder(free, labels, optimizer)
            done(step)
        whole = self._whole(best[:, None])
        words = self.words.nearest(whole, self.sentences)[:, 0]
        found = [self._with_cosine(words, labels)]
        if settings.exchanges:
            near = self.words.several(whole[:, 0], settings.nearest)
            table, count = self.words.table, settings.proposals
            words = exchanged(
                words,
                near,
                table,
                labels,
                self.distance,
                self.sentences,
                settings.exchanges,
                count,
                self.generators,
            )
            found.append(self._with_cosine(words, labels))
        return found

    def _with_cosine(self, words: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return sentences with padding after their ends, and the cosines of their gradients."""
        with torch.no_grad():
            distance = self.distance(self.words.table[words][:, None], labels[:, None], words[:, None])
        return words.masked_fill(~self.sentences.present, self.words.padding), 1 - distance[:, 0]

    def _start(self, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the best of random embeddings `(L, n, T, d)`, and labels `(L, n)`, drawn with them if unknown."""
        count, shape = self.settings.candidates, (*self.sentences.tokens.shape[1:], self.words.table.shape[1])
        device = self.words.table.device
        drawn = torch.stack([torch.randn(count, *shape, generator=one) for one in self.generators]).to(device)
        drawn = drawn / drawn.norm(dim=-1, keepdim=True) * self.words.norm
        if labels is None:
            size, classes = (count, shape[0]), self.distance.classes
            guessed = torch.stack([torch.randint(classes, size, generator=one) for one in self.generators]).to(device)
        else:
            guessed = labels[:, None].expand(-1, count, -1)
        losses = self._losses(drawn, guessed)
        free, labels = _least(losses, drawn), _least(losses, guessed)
        orders = self._orders(shuffles, count, range(shape[0]))
        return _least(self._losses_of(orders, free, labels)[0], _ordered(free, orders)), labels

    def _reorder(self, free: Tensor, labels: Tensor, optimizer: torch.optim.Adam) -> None:
        """Reorder the tokens of every sentence, and Adam's moments with them, by the best order drawn; in place."""
        settings = self.settings
        moved = (free.data, *(optimizer.state[free][name] for name in ("exp_avg", "exp_avg_sq")))
        for number in range(self.sentences.tokens.shape[1]):
            orders = self._orders(rearrangements, settings.proposals, [number])
            losses, words = self._losses_of(orders, free.detach(), labels)
            if self.prior is not None:
                present = self.sentences.present[:, None, number].expand(-1, words.shape[1], -1)
                losses = losses + settings.prior * self.prior.surprise(words[:, :, number], present)
            chosen = _least(losses, orders)[:, None]
            for values in moved:
                values.copy_(_ordered(values, chosen)[:, 0])

    def _orders(self, make: Orders, count: int, of: Iterable[int]) -> Tensor:
        """Return orders of positions `(L, count, n, T)`, drawn for the sentences `of` and the identity for others."""
        sentences = self.sentences
        free = (~sentences.known).cpu()
        length = free.shape[-1]
        orders = torch.arange(length).repeat(*free.shape[:2], count, 1)
        for row, generator in enumerate(self.generators):
            for number in of:
                places = free[row, number].nonzero().flatten()
                if len(places):
                    first, last = int(places[0]), int(places[-1]) + 1
                    orders[row, number] = make(first, last, length, count, generator)
        return orders.transpose(1, 2).to(sentences.tokens.device)

    def _losses_of(self, orders: Tensor, free: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses `(L, P)` of `free (L, n, T, d)` in the given `orders (L, P, n, T)`, and their words."""
        words = self.words.nearest(self._whole(free[:, None]), self.sentences)[:, 0]
        ordered = words[:, None].expand_as(orders).gather(3, orders)
        return self._losses(_ordered(free, orders), labels[:, None].expand(-1, orders.shape[1], -1), ordered), ordered

    @torch.no_grad()
    def _losses(self, free: Tensor, labels: Tensor, words: Tensor | None = None) -> Tensor:
        """Return the result of `_loss` without derivatives."""
        return self._loss(free, labels, words)

    def _loss(self, free: Tensor, labels: Tensor, words: Tensor | None = None) -> Tensor:
        """Return the losses `(L, P)` of embeddings `(L, P, n, T, d)`: distance plus squared difference of norms."""
        whole, present = self._whole(free), self.sentences.present[:, None]
        if words is None and self.distance.takes_words:
            words = self.words.nearest(whole, self.sentences)
        norms = whole.norm(dim=-1).masked_fill(~present, 0.0).sum(dim=(-1, -2)) / present.sum(dim=(-1, -2))
        loss: Tensor = self.distance(whole, labels, words) + (norms - self.words.norm).square()
        return loss

    def _whole(self, free: Tensor) -> Tensor:
        """Return embeddings `(L, P, n, T, d)` with those of known tokens filled in."""
        known = self.words.table[self.sentences.tokens][:, None]
        return torch.where(self.sentences.known[:, None, ..., None], known, free)


def _least(losses: Tensor, values: Tensor) -> Tensor:
    """Return the `values (L, P, ...)` of least loss, `(L, ...)`."""
    return values[torch.arange(len(losses), device=losses.device), losses.argmin(dim=1)].clone()


def _ordered(values: Tensor, orders: Tensor) -> Tensor:
    """Return `values (L, n, T, d)` in the given `orders (L, P, n, T)` of positions, `(L, P, n, T, d)`."""
    every = values[:, None].expand(-1, orders.shape[1], -1, -1, -1)
    return every.gather(3, orders[..., None].expand(*orders.shape, values.shape[-1]))
