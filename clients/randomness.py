"""Random numbers that depend on a key, which says what they are for, and never on the order of draws."""

import hashlib
from collections.abc import Iterable

import torch

from metaleak.defenses.randomness import KeyPart, RandomSource


def derived_seed(*key: KeyPart) -> int:
    """Return a 128-bit seed that depends on every part of `key` and on nothing else."""
    return int.from_bytes(RandomSource.of(*key).key[:16], "big")


def derived_ranks(start: tuple[KeyPart, ...], ends: Iterable[tuple[int, int]]) -> list[bytes]:
    """Return for each of `ends` what is ordered as `derived_seed(*start, *end)` is, in a fraction of its time."""
    # A key is the hash of its parts' text, as of a tuple; the text begins alike for all.
    begun = hashlib.blake2b(f"{repr(start)[:-1]}, ".encode(), digest_size=32)
    ranks = []
    for first, second in ends:
        one = begun.copy()
        one.update(b"%d, %d)" % (first, second))
        ranks.append(one.digest()[:16])
    return ranks


def keyed_generator(*key: KeyPart) -> torch.Generator:
    """Return a fresh CPU generator that depends on every part of `key` and on nothing else.

    The usual key is `(seed, round, learner, purpose)`. Two different keys give independent generators: the parts
    are hashed with their types and separators, so `("a", "bc")` and `("ab", "c")` differ.
    """
    return RandomSource.of(*key).generator


def keyed_uniforms(count: int, *key: KeyPart) -> list[float]:
    """Return `count` independent numbers in [0, 1), the same for the same key."""
    return torch.rand(count, generator=keyed_generator(*key), dtype=torch.float64).tolist()
