"""What attacks ask of a transformer: its attention, what its first layer takes, and what its other layers take."""

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
    """What the first layers take of a token at a place: `norm(tokens[v] + places[p]) * gain + offset`.

    `tokens (V, d)`, `places (T, d)`, `gain` and `offset (d,)`; `norm` takes mean and deviation of the d values, with
    `epsilon` under the root.
    """

    tokens: Tensor
    places: Tensor
    gain: Tensor
    offset: Tensor
    epsilon: float

    def inputs(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return what the layer takes of the `tokens (n,)` at the `places (n,)`, `(n, d)` float64."""
        added = self.tokens[tokens].double() + self.places[places].double()
        return F.layer_norm(added, added.shape[-1:], self.gain.double(), self.offset.double(), self.epsilon)


@runtime_checkable
class TextModel(Model, Protocol):
    """A classifier of sentences that shows what its layers take, which is what attacks on text ask of a model."""

    @property
    def padding(self) -> int:
        """The token that makes sentences equally long."""
        ...

    @property
    def begin(self) -> int | None:
        """The token that every sentence begins with, `None` where there is none or it is not known."""
        ...

    @property
    def end(self) -> int | None:
        """The token that every sentence ends with, `None` where there is none or it is not known."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns sentences into the model's tokens, `None` where it is not known."""
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
        """Return `parameters`, and with them those that are constants of the model."""
        ...

    def logits_of(self, parameters: Parameters, tokens: Tensor, embeddings: Tensor) -> Tensor:
        """Return logits `(B, ways)` where `embeddings (B, T, d)` stand in the place of the tokens' word embeddings.

        The `tokens (B, T)` tell where the padding is and nothing else.
        """
        ...

    def inputs_of(
        self, weight: str, parameters: Parameters, tokens: Tensor, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return what the layer with the parameter `weight` takes of `tokens (B, T)`, `(B, T, d)`; differentiable.

        With `embeddings (B, T, d)` these stand in the place of the word embeddings, as above.
        """
        ...

    def embedding_of(self, weight: str, parameters: Parameters, length: int) -> Embedding | None:
        """Return what the layer with the parameter `weight` takes of single tokens at the first `length` places.

        `None` where this is not of the form of an `Embedding`.
        """
        ...

    def over_inputs(self, weight: str, gradient: Tensor) -> Tensor:
        """Return the gradient of a matrix `weight` with the layer's inputs as its last axis, `(..., units, d)`."""
        ...

    def attention_of(self, weight: str) -> Attention | None:
        """Return the attention whose query, key or value weight is `weight`, `None` where it cannot be told."""
        ...
