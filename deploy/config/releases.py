"""How often one learner sends, which a privacy guarantee over a whole run has to cover."""

from functools import lru_cache

import numpy as np

from metaleak.server import MetaLearner

_MOST_DRAWS = 10_000_000  # About a second of a server's sampling.


@lru_cache(maxsize=64)
def most_sampled(learners: int, fraction: float, seed: int, rounds: int) -> int:
    """Return the most of the first `rounds` in which the server samples any one learner, counted.

    An upper bound, `rounds` itself, in a federation so large that counting would take seconds. Arguments as of
    `MetaLearner`.
    """
    if fraction == 1 or learners * rounds > _MOST_DRAWS:
        return rounds
    server = MetaLearner(learners, fraction=fraction, seed=seed)
    counts = np.zeros(learners, np.int64)
    for round in range(1, rounds + 1):
        counts[server.sample(round)] += 1
    return int(counts.max())
