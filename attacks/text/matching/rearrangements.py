"""Reorderings of a sentence's tokens, which descent over embeddings cannot reach."""

import torch
from torch import Tensor


def rearrangements(first: int, last: int, length: int, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` orders of a sentence of `length` positions, `(count, length)` int64, the first the identity.

    Position i of an order takes the token from position `order[i]`. Only positions in [`first`, `last`) change: two
    tokens are swapped, one token is moved, a span is moved, or a prefix is moved to the end (Balunovic et al. 2022,
    "LAMP", section 4.3), each with equal probability.
    """
    orders = torch.arange(length).repeat(count, 1)
    size = last - first
    if size < 2:
        return orders
    kinds = torch.randint(4, (count,), generator=generator).tolist()
    draws = torch.rand(count, 3, generator=generator).tolist()
    for row in range(1, count):
        places = list(range(first, last))
        one, other, third = (int(draw * size) for draw in draws[row])
        if kinds[row] == 0:
            places[one], places[other] = places[other], places[one]
        elif kinds[row] == 1:
            places.insert(other, places.pop(one))
        elif kinds[row] == 2:
            begin, end = min(one, other), max(one, other) + 1
            span, rest = places[begin:end], places[:begin] + places[end:]
            at = min(third, len(rest))
            places = rest[:at] + span + rest[at:]
        else:
            places = places[one:] + places[:one]
        orders[row, first:last] = torch.tensor(places)
    return orders


def shuffles(first: int, last: int, length: int, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` orders as above, all but the first with a random permutation of [`first`, `last`)."""
    orders = torch.arange(length).repeat(count, 1)
    keys = torch.rand(count, max(0, last - first), generator=generator)
    orders[1:, first:last] = first + keys[1:].argsort(dim=1)
    return orders
