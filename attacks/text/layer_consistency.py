"""Which sentences are consistent with the gradient of a later layer: their inputs to it lie in its input space."""

import torch
from torch import Tensor

from metaleak.attacks.text.candidates import Candidates
from metaleak.attacks.text.input_space import InputSpace
from metaleak.attacks.text.sentences import Sentence
from metaleak.clients.models import TextModel

_CHUNK = 4096
"""Number of tokens per forward pass."""


class LayerConsistency:
    """Distances between sentences' inputs to the layer of `weight` and the `space` of that layer's inputs.

    Distances are squared and relative to the inputs' squared norms. Learners compute in float32, so that true
    sentences have distances of about 1e-12. Sentences are rows of indices into `candidates`, with -1 after their last
    token.
    """

    def __init__(
        self,
        candidates: Candidates,
        model: TextModel,
        parameters: dict[str, Tensor],
        weight: str,
        space: InputSpace,
    ) -> None:
        self._tokens = torch.cat([candidates.tokens, torch.tensor([model.padding])])
        self._model, self._parameters = model, parameters
        self._weight, self._space = weight, space
        self._basis = space.basis.float()
        table = model.every_parameter(parameters)[model.embedding_table].detach()
        self.embeddings = table[self._tokens]
        """The word embeddings of the candidates, followed by that of the padding token, `(n + 1, d)`."""

    def distances(self, rows: Tensor) -> Tensor:
        """Return the distance of every token of the sentences `rows (N, P)`, `(N, P)`; 0 past their ends."""
        places = rows.shape[1]
        parts = []
        with torch.no_grad():
            for some in torch.split(rows, max(1, _CHUNK // places)):
                longest = int((some >= 0).sum(dim=1).max())
                parts.append(torch.nn.functional.pad(self._outside(some[:, :longest]), (0, places - longest)))
        return torch.cat(parts)

    def slopes(self, rows: Tensor) -> Tensor:
        """Return the derivatives of sentences' mean distances with respect to their word embeddings, `(N, P, d)`."""
        embeddings = self.embeddings[rows].requires_grad_()
        total = (self._outside(rows, embeddings).sum(dim=1) / (rows >= 0).sum(dim=1)).sum()
        (found,) = torch.autograd.grad(total, embeddings)
        return found

    def __call__(self, sentences: list[Sentence]) -> list[float]:
        """Return the mean distance of the tokens of each sentence."""
        costs = []
        for sentence in sentences:
            with torch.no_grad():
                inputs = self._model.inputs_of(self._weight, self._parameters, self._tokens[list(sentence)][None])
            costs.append(float(self._space.distances(inputs[0]).square().mean()))
        return costs

    def _outside(self, rows: Tensor, embeddings: Tensor | None = None) -> Tensor:
        inputs = self._model.inputs_of(self._weight, self._parameters, self._tokens[rows], embeddings)
        outside = inputs - inputs @ self._basis.mT @ self._basis
        parts = outside.square().sum(dim=-1) / inputs.square().sum(dim=-1)
        return parts.where(rows >= 0, 0.0)
