"""Random generators of an attack, keyed by what they are for.

The attacks' own: learners draw with theirs, and no attack may be able to draw what a learner drew.
"""

import hashlib

import torch


def generator_for(*key: int | str) -> torch.Generator:
    """Return a fresh CPU generator that depends on every part of `key`, and on nothing else."""
    digest = hashlib.blake2b(repr(("attack", *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
