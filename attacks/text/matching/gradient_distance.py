"""The distance between the gradient of sentences, given by their word embeddings, and the observed gradient."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metaleak.clients.episode import Parameters
from metaleak.clients.models import TextModel

_SMALL = 1e-30
"""Added under the square root to avoid division by 0 for a gradient of 0."""


@dataclass(frozen=True)
class Sentences:
    """What is known about the n sentences of each of L learners before the search.

    `tokens (L, n, T)` int64 are correct where `known (L, n, T)` is true, and arbitrary tokens other than padding
    elsewhere. `present (L, n, T)` is true at the positions that are not padding.
    """

    tokens: Tensor
    known: Tensor
    present: Tensor


class GradientDistance:
    """The mean over tensors of `1 - cos` between the observed gradient and that of sentences, for L learners.

    `observed` are gradients `(L, ...)`; for each learner, only tensors whose gradient is not 0 count. Sentences are
    given by their `embeddings`, from which the gradient of the word embedding itself cannot be computed: its nonzero
    rows are those of the `words`, see `__call__`. `parameters` are all parameters of the model. About `numbers`
    entries of gradients are kept in memory at a time.
    """

    def __init__(
        self,
        model: TextModel,
        parameters: Parameters,
        observed: Mapping[str, Tensor],
        sentences: Sentences,
        numbers: int,
    ) -> None:
        self._model, self._parameters, self._sentences = model, parameters, sentences
        with torch.no_grad():
            self.classes = model(parameters, sentences.tokens[0]).shape[-1]
        self._table = observed.get(model.embedding_table)
        self._observed = {name: value.flatten(1) for name, value in observed.items()}
        self._squares = {name: value.square().sum(dim=1) for name, value in self._observed.items()}
        counted = torch.stack([value > 0 for value in self._squares.values()], dim=1)
        self._weights = dict(
            zip(self._observed, (counted / counted.sum(dim=1, keepdim=True).clamp(min=1)).unbind(dim=1), strict=True)
        )
        entries = sum(value[0].numel() for name, value in self._observed.items() if name != model.embedding_table)
        self._at_once = max(1, numbers // max(1, entries * len(sentences.tokens)))

    @property
    def takes_words(self) -> bool:
        """Whether the gradient of the word embedding was observed, so that words are needed."""
        return self._table is not None

    def __call__(self, embeddings: Tensor, labels: Tensor, words: Tensor | None = None) -> Tensor:
        """Return the distances of P candidates for each learner, `(L, P)` in [0, 2], differentiable in `embeddings`.

        The shapes are `embeddings (L, P, n, T, d)`, `labels (L, P, n)` int64 and `words (L, P, n, T)`, which are
        needed if the gradient of the word embedding was observed.
        """
        candidates = torch.arange(embeddings.shape[1], device=embeddings.device)
        parts = [
            self._distances(embeddings[:, some], labels[:, some], None if words is None else words[:, some])
            for some in torch.split(candidates, self._at_once)
        ]
        return torch.cat(parts, dim=1)

    def _distances(self, embeddings: Tensor, labels: Tensor, words: Tensor | None) -> Tensor:
        learners, candidates = embeddings.shape[:2]
        chosen = {name: self._parameters[name] for name in self._observed if name != self._model.embedding_table}

        def loss(moving: Parameters, inputs: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
            logits = self._model.logits_of({**self._parameters, **moving}, tokens, inputs)
            return F.cross_entropy(logits, labels)

        each = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0, 0, 0))
        tokens = self._sentences.tokens[:, None].expand(-1, candidates, -1, -1)
        made, slopes = each(chosen, embeddings.flatten(0, 1), tokens.flatten(0, 1), labels.flatten(0, 1))
        total = torch.zeros(learners, candidates, dtype=embeddings.dtype, device=embeddings.device)
        for name, value in made.items():
            ours = value.reshape(learners, candidates, -1)
            products = (ours @ self._observed[name][:, :, None])[..., 0]
            total = total + self._part(name, products, ours.square().sum(dim=-1))
        if self._table is not None:
            assert words is not None
            total = total + self._part(self._model.embedding_table, *self._of_rows(self._table, slopes, words))
        return total

    def _part(self, name: str, products: Tensor, squares: Tensor) -> Tensor:
        """Return one tensor's term of the distances, from products with its observed gradient and squared norms."""
        lengths = (squares * self._squares[name][:, None] + _SMALL).sqrt()
        return self._weights[name][:, None] * (1 - products / lengths)

    def _of_rows(self, table: Tensor, slopes: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inner product with the word embedding's observed gradient, and the squared norm, `(L, P)` each.

        A row of that gradient is the sum of the derivatives `slopes` at all positions where its word occurs.
        """
        learners, candidates = words.shape[:2]
        flat = words.reshape(learners, candidates, -1)
        slopes = slopes.reshape(*flat.shape, -1)
        rows = table[torch.arange(learners, device=words.device)[:, None, None], flat]
        same = (flat[..., :, None] == flat[..., None, :]).to(slopes.dtype)
        return (rows * slopes).sum(dim=(-1, -2)), ((same @ slopes) * slopes).sum(dim=(-1, -2))
