"""What attacks know of the parts of a transformer: its attention, and what its first layer takes."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


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
