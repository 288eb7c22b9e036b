"""Which tokens a layer took, and at which places: all of the vocabulary are tried at every place."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.text.input_space import InputSpace
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Embedding, TextModel

_NEAR = 0.05
"""Tokens that lie farther from the space, as part of their norm, are not looked at closely."""

_FEW = 8
"""So many of the nearest tokens of every place are looked at closely in any case."""

_CHUNK = 4096


@dataclass(frozen=True)
class Candidates:
    """Pairs of `tokens (n,)` and `places (n,)` that a layer may have taken, and its `inputs (n, d)` of them, float64.

    `ratios (n,)` are their distances from the space as multiples of what its noise allows.
    """

    tokens: Tensor
    places: Tensor
    inputs: Tensor
    ratios: Tensor

    def at(self, chosen: Tensor) -> "Candidates":
        """Return the pairs at these indices."""
        return Candidates(self.tokens[chosen], self.places[chosen], self.inputs[chosen], self.ratios[chosen])

    def inside(self, allowed: float = 1.0) -> "Candidates":
        """Return the pairs at most `allowed` times as far as the noise allows.

        A place before the last of them that has none keeps its nearest.
        """
        chosen = self.ratios <= allowed
        last = int(self.places[chosen].max()) if bool(chosen.any()) else 0
        for place in range(last):
            at = self.places == place
            if bool(at.any()) and not bool((chosen & at).any()):
                chosen |= at & (self.ratios == self.ratios[at].min())
        return self.at(chosen.nonzero().flatten())


def near_candidates(
    model: TextModel, parameters: Parameters, weight: str, space: InputSpace, length: int
) -> Candidates:
    """Return the pairs of token and place, of the first `length`, that lie near the space of `weight`, nearest first.

    `weight` belongs to a layer that takes single tokens, see `single_inputs`. The padding is left out.
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
    """Return what the layer of `weight` takes of `tokens (n,)` at `places (n,)`, each by itself, `(n, d)` float64."""
    embedding = model.embedding_of(weight, parameters, length)
    if embedding is not None:
        return embedding.inputs(tokens, places)
    parts = [
        model.inputs_of(weight, parameters, some[:, None].expand(-1, length))[torch.arange(len(some)), at]
        for some, at in zip(torch.split(tokens, _CHUNK), torch.split(places, _CHUNK), strict=True)
    ]
    return torch.cat(parts).double()


def takes_single_tokens(model: TextModel, parameters: Parameters, weight: str) -> bool:
    """Return whether what the layer of `weight` takes of a token depends on no other token; found by computing."""
    first, second = [token for token in range(3) if token != model.padding][:2]
    tokens = torch.tensor([[first, first], [first, second], [second, first]])
    inputs = model.inputs_of(weight, parameters, tokens)
    # In a decoder a token sees those before it alone.
    return inputs.ndim == 3 and torch.equal(inputs[0, 0], inputs[1, 0]) and torch.equal(inputs[0, 1], inputs[2, 1])


def sees_later_tokens(model: TextModel, parameters: Parameters, weight: str) -> bool:
    """Return whether what the layer of `weight` takes of a token depends on later ones; found by computing."""
    first, second = [token for token in range(3) if token != model.padding][:2]
    inputs = model.inputs_of(weight, parameters, torch.tensor([[first, first], [first, second]]))
    return not torch.equal(inputs[0, 0], inputs[1, 0])


def _one_by_one(model: TextModel, parameters: Parameters, weight: str, space: InputSpace, length: int) -> Tensor:
    """Return the distances of all tokens at all places, `(V, length)`."""
    every = torch.arange(model.vocabulary_size)
    return torch.cat(
        [
            space.distances(model.inputs_of(weight, parameters, some[:, None].expand(-1, length)))
            for some in torch.split(every, max(1, _CHUNK // length))
        ]
    )


def _by_tables(embedding: Embedding, space: InputSpace) -> Tensor:
    """Return the distances of all tokens at all places `(V, length)`, from products of the tables; to about 1e-3.

    Of z = (e + b) gain / s + offset, s the deviation of e + b, the part outside the space is a sum of three parts
    outside it, and its square a sum of their products: none of the V times length inputs is made.
    """
    basis = space.basis.to(embedding.tokens.dtype)

    def outside(values: Tensor) -> Tensor:
        return values - values @ basis.mT @ basis

    tokens, places = (table - table.mean(dim=1, keepdim=True) for table in (embedding.tokens, embedding.places))
    size = tokens.shape[1]

    def squares(first: Tensor, second: Tensor) -> Tensor:
        """The squared norms of the sums of all rows of one with all of the other."""
        return first.square().sum(1)[:, None] + 2 * first @ second.mT + second.square().sum(1)

    deviation = (squares(tokens, places) / size + embedding.epsilon).sqrt()

    def norms(first: Tensor, second: Tensor, offset: Tensor) -> Tensor:
        mixed = (first @ offset)[:, None] + second @ offset
        return squares(first, second) / deviation.square() + 2 * mixed / deviation + offset.square().sum()

    first, second = tokens * embedding.gain, places * embedding.gain
    off = norms(outside(first), outside(second), outside(embedding.offset))
    return (off.clamp(min=0) / norms(first, second, embedding.offset)).sqrt()
