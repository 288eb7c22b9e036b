"""How often the 95 % intervals contain the true value, with few learners and seeds, for scores whose AUC is known.

    python tests/benchmarks/interval_coverage.py [--learners 10 100] [--seeds 1 5] [--simulations 1000]

The score of a target is a learner's own offset, for members plus what is told in this seed and of this learner, plus
noise, all normal; so the AUC and the TPR of pairs within and between learners are known in closed form. `--effects`
are the deviations of a learner's offset, of what is told of a learner, and of what is told in a seed. Of one seed the
truth is that of this seed's distribution, without a seed's effect. Beside each coverage stands that of the
bootstrap's plain percentiles, with learners resampled and, of several seeds, seeds and learners in them.
"""

import argparse
import json
import math

import numpy as np
from scipy.stats import binomtest, norm

from metaleak.attacks.evaluation.intervals import over_seeds
from metaleak.attacks.evaluation.membership import Evaluation, evaluate

_RESAMPLES = 400


def main() -> None:
    """Print a line for each number of learners and of seeds, and each strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--told", type=float, nargs="+", default=[0.0, 1.0, 3.0])
    parser.add_argument("--effects", type=float, nargs=3, default=[0.5, 0.4, 0.2])
    parser.add_argument("--members", type=int, default=300)
    parser.add_argument("--non-members", type=int, default=600)
    parser.add_argument("--simulations", type=int, default=1000)
    given = parser.parse_args()
    offset, own, seeded = given.effects
    for learners in given.learners:
        for seeds in given.seeds:
            for told in given.told:
                random = np.random.default_rng([learners, seeds, int(1000 * told)])
                between = seeded if seeds > 1 else 0.0
                truth = known_auc(told, learners, offset, own, between)
                hits = usual = 0
                for _ in range(given.simulations):
                    found = [
                        one_seed(random, told + between * random.normal(), learners, offset, own, seeds == 1, given)
                        for _ in range(seeds)
                    ]
                    whole = over_seeds([one.auc for one, _ in found], sum(one.members for one, _ in found))
                    hits += whole.low <= truth <= whole.high
                    low, high = resampled_percentiles(random, [resampled for _, resampled in found])
                    usual += low <= truth <= high
                sure = binomtest(hits, given.simulations).proportion_ci(0.95)
                line = {
                    "learners": learners,
                    "seeds": seeds,
                    "AUC": round(truth, 4),
                    "coverage": round(hits / given.simulations, 4),
                    "interval": [round(sure.low, 4), round(sure.high, 4)],
                    "percentiles": round(usual / given.simulations, 4),
                    "simulations": given.simulations,
                }
                print(json.dumps(line), flush=True)


def known_auc(told: float, learners: int, offset: float, own: float, seeded: float) -> float:
    """Return the expected AUC: a pair is of one learner with the chance 1 / `learners`, where offsets cancel."""
    spread = 2 + own**2 + seeded**2
    same, other = (float(norm.cdf(told / math.sqrt(spread + more))) for more in (0.0, 2 * offset**2))
    return same / learners + other * (1 - 1 / learners)


def one_seed(
    random: np.random.Generator,
    told: float,
    learners: int,
    offset: float,
    own: float,
    single: bool,
    given: argparse.Namespace,
) -> tuple[Evaluation, np.ndarray]:
    """Return the evaluation of one federation and its resampled AUCs, by the plain percentile bootstrap's means."""
    member = np.arange(given.members + given.non_members) < given.members
    learner = random.integers(0, learners, len(member))
    offsets, strengths = offset * random.normal(size=learners), told + own * random.normal(size=learners)
    scores = offsets[learner] + member * strengths[learner] + random.normal(size=len(member))
    # Of several seeds the values alone are asked.
    resamples = _RESAMPLES if single else 1
    found = evaluate(scores, member, groups=learner, resamples=resamples, seed=int(random.integers(2**31)))
    return found, resampled_aucs(random, scores, member, learner, learners)


def resampled_aucs(
    random: np.random.Generator, scores: np.ndarray, member: np.ndarray, learner: np.ndarray, learners: int
) -> np.ndarray:
    """Return AUCs `(B,)` with whole learners resampled."""
    order = np.argsort(scores)
    counts = random.multinomial(learners, np.full(learners, 1 / learners), _RESAMPLES)[:, learner[order]]
    others = counts * ~member[order]
    below = np.cumsum(others, axis=1)
    won = (below * counts * member[order]).sum(axis=1)
    return won / np.maximum(1, (counts * member[order]).sum(axis=1) * others.sum(axis=1))


def resampled_percentiles(random: np.random.Generator, resampled: list[np.ndarray]) -> tuple[float, float]:
    """Return the percentiles of means over resampled seeds of AUCs with resampled learners."""
    table = np.stack(resampled)
    if len(table) == 1:
        low, high = np.quantile(table[0], [0.025, 0.975])
        return float(low), float(high)
    drawn = random.integers(0, len(table), (_RESAMPLES, len(table)))
    means = table[drawn, random.integers(0, _RESAMPLES, drawn.shape)].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
