"""Random numbers of an attack, keyed by what they are for.

The attacks' own: learners draw with theirs, and no attack may be able to draw what a learner drew.
"""

import torch

from metaleak.defenses.randomness import RandomSource


def random_for(*key: int | str) -> RandomSource:
    """Return the source of random numbers that depends on every part of `key`, and on nothing else."""
    return RandomSource.of("attack", *key)


def generator_for(*key: int | str) -> torch.Generator:
    """Return the CPU generator of `random_for(*key)`, fresh."""
    return random_for(*key).generator
