"""Random numbers keyed by what they are for, never by the order in which they are drawn."""

import hashlib

import torch


def derived_seed(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of `key` and on nothing else.

    The usual key is `(seed, round, learner, purpose)`. Two different keys give independent seeds: the parts
    are hashed (BLAKE2b) with their types and separators, so `("a", "bc")` and `("ab", "c")` differ.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a fresh CPU generator seeded by `derived_seed(*key)`."""
    return torch.Generator().manual_seed(derived_seed(*key))


def keyed_uniforms(count: int, *key: int | str) -> list[float]:
    """Return `count` independent numbers in [0, 1), the same for the same key."""
    return torch.rand(count, generator=keyed_generator(*key), dtype=torch.float64).tolist()
