"""Random numbers of attacks, keyed by their purpose.

They are separate from the learners' random numbers, so that no attack can reproduce those.
"""

import torch

from metaleak.defenses.randomness import RandomSource


def random_for(*key: int | str) -> RandomSource:
    """Return a source of random numbers that depends on all parts of `key`, and on nothing else."""
    return RandomSource.of("attack", *key)


def generator_for(*key: int | str) -> torch.Generator:
    """Return a fresh CPU generator, that of `random_for(*key)`."""
    return random_for(*key).generator
