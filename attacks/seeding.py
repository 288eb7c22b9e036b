"""Random numbers of attacks, keyed by their purpose.

They are separate from the learners' random numbers: no attack may be able to repeat what a learner drew.
"""

import torch

from metaleak.defenses.randomness import RandomSource


def random_for(*key: int | str) -> RandomSource:
    """Return the source of random numbers that depends on every part of `key`, and on nothing else."""
    return RandomSource.of("attack", *key)


def generator_for(*key: int | str) -> torch.Generator:
    """Return the CPU generator of `random_for(*key)`, fresh."""
    return random_for(*key).generator
