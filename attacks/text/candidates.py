"""Candidate tokens of a layer's input and their positions: every vocabulary token is tested at every position."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.text.input_space import InputSpace
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Embedding, TextModel

_NEAR = 0.05
"""Largest approximate distance from the space, relative to the input's norm, at which a token is tested exactly."""

_FEW = 8
"""Number of nearest tokens per position that are always tested exactly."""

_CHUNK = 4096


@dataclass(frozen=True)
class Candidates:
    """Pairs of token and position that a layer may have processed.

    `tokens (n,)` and `places (n,)` are the pairs, `inputs (n, d)` float64 the layer's inputs for them, and
    `ratios (n,)` the distances of these inputs from the input space, divided by the tolerance for its noise.
    """

    tokens: Tensor
    places: Tensor
    inputs: Tensor
    ratios: Tensor

    def at(self, chosen: Tensor) -> "Candidates":
        """Return the pairs at these indices."""
        return Candidates(self.tokens[chosen], self.places[chosen], self.inputs[chosen], self.ratios[chosen])

    def inside(self, allowed: float = 1.0) -> Tensor:
        """Return the indices `(k,)` of the pairs with a ratio of at most `allowed`.

        A position without such a pair that precedes the last position with one keeps its nearest pair.
        """
        chosen = self.ratios <= allowed
        last = int(self.places[chosen].max()) if bool(chosen.any()) else 0
        for place in range(last):
            at = self.places == place
            if bool(at.any()) and not bool((chosen & at).any()):
                chosen |= at & (self.ratios == self.ratios[at].min())
        return chosen.nonzero().flatten()


def near_candidates(
    model: TextModel, parameters: Parameters, weight: str, space: InputSpace, length: int
) -> Candidates:
    """Return the pairs of token and position whose inputs lie near the input space of `weight`, nearest first.

    The first `length` positions are searched. The layer of `weight` must process each token independently, see
    `takes_single_tokens`. The padding token is excluded.
    """
    embedding = model.embedding_of(weight, parameters, length)
    rough = _by_tables(embedding, space) if embedding else _one_by_one(model, parameters, weight, space, length)
    rough[model.padding] = torch.inf
    near = rough < _NEAR
    near.scatter_(0, rough.topk(min(_FEW, len(rough)), dim=0, largest=False).indices, True)
    tokens, places = near.nonzero(as_tuple=True)
    inputs = single_inputs(model, parameters, weight, tokens, places, length)
    ratios = space.distances(inputs) / space.tolerances(inputs)
    return Candidates(tokens, places, inputs, ratios).at(ratios.argsort())


def single_inputs(
    model: TextModel, parameters: Parameters, weight: str, tokens: Tensor, places: Tensor, length: int
) -> Tensor:
    """Return the inputs of the layer of `weight` for `tokens (n,)` at positions `places (n,)`, `(n, d)` float64."""
    embedding = model.embedding_of(weight, parameters, length)
    if embedding is not None:
        return embedding.inputs(tokens, places)
    parts = [
        model.inputs_of(weight, parameters, some[:, None].expand(-1, length))[torch.arange(len(some)), at]
        for some, at in zip(torch.split(tokens, _CHUNK), torch.split(places, _CHUNK), strict=True)
    ]
    return torch.cat(parts).double()


def takes_single_tokens(model: TextModel, parameters: Parameters, weight: str) -> bool:
    """Return whether the layer's input at a token depends on no other token, tested on sequences of two tokens."""
    first, second = [token for token in range(3) if token != model.padding][:2]
    tokens = torch.tensor([[first, first], [first, second], [second, first]])
    inputs = model.inputs_of(weight, parameters, tokens)
    # In a decoder a token attends only to itself and the tokens before it.
    return inputs.ndim == 3 and torch.equal(inputs[0, 0], inputs[1, 0]) and torch.equal(inputs[0, 1], inputs[2, 1])


def sees_later_tokens(model: TextModel, parameters: Parameters, weight: str) -> bool:
    """Return whether the layer's input at a token depends on later tokens, tested on sequences of two tokens."""
    first, second = [token for token in range(3) if token != model.padding][:2]
    inputs = model.inputs_of(weight, parameters, torch.tensor([[first, first], [first, second]]))
    return not torch.equal(inputs[0, 0], inputs[1, 0])


def _one_by_one(model: TextModel, parameters: Parameters, weight: str, space: InputSpace, length: int) -> Tensor:
    """Return the distances of all tokens at all positions, `(V, length)`."""
    every = torch.arange(model.vocabulary_size)
    return torch.cat(
        [
            space.distances(model.inputs_of(weight, parameters, some[:, None].expand(-1, length)))
            for some in torch.split(every, max(1, _CHUNK // length))
        ]
    )


def _by_tables(embedding: Embedding, space: InputSpace) -> Tensor:
    """Return the distances of all tokens at all positions, `(V, length)`, accurate to about 1e-3.

    An input is z = (e + b) gain / s + offset, where s is the standard deviation of e + b. Its component outside the
    space is a sum of three such components, whose squared norm follows from their inner products. These are products
    of the embedding tables, so none of the V times length inputs is computed.
    """
    basis = space.basis.to(embedding.tokens.dtype)

    def outside(values: Tensor) -> Tensor:
        return values - values @ basis.mT @ basis

    tokens, places = (table - table.mean(dim=1, keepdim=True) for table in (embedding.tokens, embedding.places))
    size = tokens.shape[1]

    def squares(first: Tensor, second: Tensor) -> Tensor:
        """Return the squared norms of the sums of each row of `first` and each row of `second`."""
        return first.square().sum(1)[:, None] + 2 * first @ second.mT + second.square().sum(1)

    deviation = (squares(tokens, places) / size + embedding.epsilon).sqrt()

    def norms(first: Tensor, second: Tensor, offset: Tensor) -> Tensor:
        mixed = (first @ offset)[:, None] + second @ offset
        return squares(first, second) / deviation.square() + 2 * mixed / deviation + offset.square().sum()

    first, second = tokens * embedding.gain, places * embedding.gain
    off = norms(outside(first), outside(second), outside(embedding.offset))
    return (off.clamp(min=0) / norms(first, second, embedding.offset)).sqrt()
