"""The parts of a transformer that attacks use: its attention, and the inputs of its layers."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

from metaleak.clients.episode import Parameters
from metaleak.clients.models.model import Model
from metaleak.clients.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Attention:
    """The attention of one layer: the names of its query and key weights `(d, d)`, and how many `heads` it has."""

    query: str
    key: str
    heads: int


@dataclass(frozen=True)
class Embedding:
    """The inputs of the first layers for token v at place p: `norm(tokens[v] + places[p]) * gain + offset`.

    `tokens (V, d)`, `places (T, d)`, `gain` and `offset (d,)`. `norm` subtracts the mean of the d values and divides
    by their standard deviation, with `epsilon` under the root.
    """

    tokens: Tensor
    places: Tensor
    gain: Tensor
    offset: Tensor
    epsilon: float

    def inputs(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return the layer's inputs `(n, d)`, in float64, for the `tokens (n,)` at the `places (n,)`."""
        added = self.tokens[tokens].double() + self.places[places].double()
        return F.layer_norm(added, added.shape[-1:], self.gain.double(), self.offset.double(), self.epsilon)


@runtime_checkable
class TextModel(Model, Protocol):
    """A classifier of sentences that shows the inputs of its layers, as attacks on text need."""

    @property
    def padding(self) -> int:
        """The token that makes sentences equally long."""
        ...

    @property
    def begin(self) -> int | None:
        """The token with which every sentence begins; `None` if there is none or it is not known."""
        ...

    @property
    def end(self) -> int | None:
        """The token with which every sentence ends; `None` if there is none or it is not known."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that turns sentences into the model's tokens; `None` if it is not known."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens that the model knows."""
        ...

    @property
    def embedding_table(self) -> str:
        """The name of the word embedding's weight `(V, d)`."""
        ...

    def every_parameter(self, parameters: Parameters) -> Parameters:
        """Return `parameters` together with those that are constants of the model."""
        ...

    def logits_of(self, parameters: Parameters, tokens: Tensor, embeddings: Tensor) -> Tensor:
        """Return logits `(B, ways)` with `embeddings (B, T, d)` in the place of the tokens' word embeddings.

        The `tokens (B, T)` only show where the padding is.
        """
        ...

    def inputs_of(
        self, weight: str, parameters: Parameters, tokens: Tensor, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the inputs `(B, T, d)` of the layer with the parameter `weight` for `tokens (B, T)`; differentiable.

        With `embeddings (B, T, d)` these replace the word embeddings, as in `logits_of`.
        """
        ...

    def embedding_of(self, weight: str, parameters: Parameters, length: int) -> Embedding | None:
        """Return the inputs of the layer with the parameter `weight` as a function of a token and its place.

        `None` where they do not have the form of an `Embedding`. Places are the first `length` ones.
        """
        ...

    def over_inputs(self, weight: str, gradient: Tensor) -> Tensor:
        """Return the gradient of a matrix `weight` with the layer's inputs as its last axis, `(..., units, d)`."""
        ...

    def attention_of(self, weight: str) -> Attention | None:
        """Return the attention whose query, key or value weight is `weight`; `None` if the names do not show it."""
        ...
