"""Lower bounds on epsilon from the success of an attack, which refute a claim of a smaller epsilon.

If a mechanism is (epsilon, delta)-differentially private, every test between two neighboring data sets satisfies
TPR <= exp(epsilon) FPR + delta and 1 - FPR <= exp(epsilon) (1 - TPR) + delta (Kairouz, Oh and Viswanath 2015, theorem
2.1). So confidence bounds on an attack's rates give a lower bound on epsilon. Neighbors differ, as for the defenses
here, in one *replaced* image: a member is an image that the learner holds, a non-member an image of the same class
that it could have held in its place.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincinv, ndtri

from metaleak.attacks.evaluation.roc import Bools, Counts, Floats
from metaleak.defenses import gaussian_epsilon

_STEP = 4  # Between ranks: with 2, the correction for more thresholds costs more than their finer choice gains.


def epsilon_lower_bound(
    scores: ArrayLike,
    member: ArrayLike,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> float:
    """Return a lower bound on the epsilon at `delta` of the attacked mechanism, in [0, inf).

    `scores (T,)`, higher for "member", of targets with the ground truth `member (T,)`, booleans. The bound exceeds
    the true epsilon with probability at most 1 - `confidence`, for any number of targets (Nasr et al. 2023, "Tight
    Auditing of Differentially Private Machine Learning": Clopper-Pearson intervals of FPR and TPR).

    The thresholds are the scores of non-members (for the second inequality: of members) at *ranks* that are fixed in
    advance: n/4, n/16, ... and the highest. The FPR at such a threshold has the Beta distribution of an order
    statistic, which is that of the Clopper-Pearson bound (ties are broken at random), so all targets serve both to
    choose thresholds and to estimate rates. The error probability is divided among all thresholds (Bonferroni). On
    Gaussian scores this is tighter than a threshold chosen on one half of the targets and measured on the other: 2.15
    against 1.74 with 500 members and 500 non-members, 1.6 standard deviations apart.

    Targets must be independent. Targets in the same of the `groups (T,)`, such as those of one learner, share its
    noise, so only one of each group counts: of groups with both kinds, alternately the first member and the first
    non-member, so that the two rates are independent, too. The order of targets must therefore not depend on their
    scores.

    Raises `ValueError` for NaN scores, shapes that differ, or settings outside (0, 1) (`delta` may be 0).

    Example:
        Even a perfect attack on 100 members and 100 non-members proves only this much:

        >>> member = [True] * 100 + [False] * 100
        >>> round(epsilon_lower_bound([1.0] * 100 + [0.0] * 100, member), 2)
        2.82
    """
    _check_settings(delta, confidence)
    bounds = [
        np.log((tpr - delta) / fpr) for tpr, fpr in _rates(scores, member, groups, confidence) if tpr - delta > fpr
    ]
    return max([0.0, *map(float, bounds)])


def gaussian_epsilon_lower_bound(
    scores: ArrayLike,
    member: ArrayLike,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> float:
    """Return a lower bound on the epsilon at `delta` of a mechanism *known to be Gaussian*, in [0, inf).

    As `epsilon_lower_bound`, but the rates bound the mechanism's mu: no test of a mu-GDP mechanism has TPR >
    Phi(Phi^-1(FPR) + mu) (Dong, Roth and Su 2022), and mu determines epsilon at `delta`. It is tighter, since rates
    in the middle of the ROC curve, which need few targets to estimate, count, too. Not valid for any other mechanism.

    Example:
        >>> member = [True] * 100 + [False] * 100
        >>> round(gaussian_epsilon_lower_bound([1.0] * 100 + [0.0] * 100, member), 2)
        17.97
    """
    _check_settings(delta, confidence)
    rates = _rates(scores, member, groups, confidence)
    apart = max([0.0, *(float(ndtri(tpr) - ndtri(fpr)) for tpr, fpr in rates if tpr > fpr)])
    return gaussian_epsilon(1 / apart, 1, delta) if apart > 0 else 0.0


def gaussian_epsilon_of_guesses(right: int, guesses: int, *, delta: float = 1e-5, confidence: float = 0.95) -> float:
    """Return a lower bound on the epsilon at `delta` of a mechanism *known to be Gaussian*, in [0, inf).

    `right` of `guesses` independent guesses were right, each about which of two neighbors a fair coin of its own had
    chosen. No test of a mu-GDP mechanism is right with probability above Phi(mu / 2) (Dong, Roth and Su 2022: the
    point of the trade-off curve with equal errors), so the Clopper-Pearson bound on that probability bounds mu. It is
    tighter than `gaussian_epsilon_lower_bound`, as it bounds one number only, but the threshold between the guesses
    must have been fixed before the scores were seen. Raises `ValueError` for counts or settings outside their ranges.

    Example:
        >>> round(gaussian_epsilon_of_guesses(right=90, guesses=100), 2)
        9.74
    """
    _check_settings(delta, confidence)
    if not 0 <= right <= guesses:
        raise ValueError(f"right: must be in [0, {guesses}], the number of guesses, got {right}")
    apart = 2 * float(ndtri(_at_least(right, guesses, 1 - confidence)))
    return gaussian_epsilon(1 / apart, 1, delta) if apart > 0 else 0.0


def one_run_lower_bound(
    scores: ArrayLike, member: ArrayLike, *, delta: float = 1e-5, confidence: float = 0.95
) -> float:
    """Return a lower bound on epsilon from one run in which many targets were members at random, in [0, inf).

    Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", theorem 5.2: if v of r guesses
    about m coins were right, then under (epsilon, delta) that has probability at most P[Binomial(r, e^epsilon /
    (1 + e^epsilon)) >= v] plus a term for delta. Targets may share noise. The guesses are the r/2 highest scores
    ("member") and the r/2 lowest, for r fixed in advance: m, m/4, m/16, ..., which share the error probability
    (Bonferroni).

    The theorem assumes that every target is a member by a fair coin of its own, flipped for this run. The targets
    here only approximate that: members are drawn among what learners hold and non-members among what nobody holds, in
    fixed numbers, of which the first are used, equally many of each. So report it beside `epsilon_lower_bound`, and
    do not rely on it. Raises `ValueError` in the same cases.

    Example:
        >>> member = [True] * 100 + [False] * 100
        >>> round(one_run_lower_bound([1.0] * 100 + [0.0] * 100, member), 2)
        3.87
    """
    _check_settings(delta, confidence)
    score, truth = _ranked(scores, member)
    each = min(int(truth.sum()), int((~truth).sum()))
    taken = np.sort(np.concatenate([np.flatnonzero(truth)[:each], np.flatnonzero(~truth)[:each]]))
    order = taken[np.argsort(-score[taken], kind="stable")]
    halves = [half for half in _ranks(4 * each) if half >= 4]
    best = 0.0
    for half in halves:
        right = int(truth[order[:half]].sum() + (~truth[order[-half:]]).sum())
        chance = partial(_chance, 2 * each, 2 * half, right, delta)
        best = max(best, _largest_refuted(chance, (1 - confidence) / len(halves)))
    return best


def _rates(
    scores: ArrayLike, member: ArrayLike, groups: ArrayLike | None, confidence: float
) -> Iterator[tuple[float, float]]:
    """Yield lower bounds on true rates, each with an upper bound on the false rate at the same threshold.

    The pairs are (TPR, FPR) and (TNR, FNR) at every threshold; all bounds hold together with `confidence`.
    """
    score, truth = _ranked(scores, member)
    if groups is not None:
        counted = _one_of_each(truth, np.asarray(groups))
        score, truth = score[counted], truth[counted]
    own, other = score[truth], score[~truth]
    if not len(own) or not len(other):
        return
    sides: list[tuple[Floats, Floats]] = [(own, other), (-other, -own)]
    error = (1 - confidence) / (2 * sum(len(_ranks(len(null))) for _, null in sides))
    for wanted, null in sides:
        descending = -np.sort(-null)
        for rank in _ranks(len(null)):
            accepted = int((wanted > descending[rank]).sum())
            yield _at_least(accepted, len(wanted), error), 1 - _at_least(len(null) - rank, len(null), error)


def _ranks(count: int) -> list[int]:
    """Return the ranks of the thresholds among `count` scores: 0 and count/4, count/16, ..., ascending."""
    ranks, rank = {0}, count // _STEP
    while rank > 0:
        ranks.add(rank)
        rank //= _STEP
    return sorted(ranks)


def _at_least(successes: int, trials: int, error: float) -> float:
    """Return the lower Clopper-Pearson bound on a probability; it is too high with probability at most `error`."""
    return float(betaincinv(successes, trials - successes + 1, error)) if successes else 0.0


def _one_of_each(truth: Bools, groups: Counts) -> Counts:
    """Return the indices of one target per group, in half of the groups with both kinds a member."""
    if groups.shape != truth.shape:
        raise ValueError(f"groups: must have the shape of member, {truth.shape}, got {groups.shape}")
    members, non_members = (dict(_firsts(groups, kind)) for kind in (truth, ~truth))
    mixed = sorted(members[group] for group in members.keys() & non_members.keys())
    as_non_members = {groups[index] for index in mixed[1::2]}
    kept = [index for group, index in members.items() if group not in as_non_members] + [
        index for group, index in non_members.items() if group not in members or group in as_non_members
    ]
    return np.array(sorted(kept), np.int64)


def _firsts(groups: Counts, kind: Bools) -> Iterator[tuple[object, int]]:
    """Yield every group that has a target of this kind, with the index of the first such target."""
    places = np.flatnonzero(kind)
    names, first = np.unique(groups[places], return_index=True)
    yield from zip(names.tolist(), places[first].tolist(), strict=True)


def _chance(coins: int, guesses: int, right: int, delta: float, epsilon: float) -> float:
    """Return an upper bound on the probability of at least `right` right guesses under (`epsilon`, `delta`).

    It is beta + 2 m delta max_i (P[right > W >= right - i] / i), the algorithm of the paper's appendix D.
    """
    if right == 0:
        return 1.0
    chance = 1 / (1 + np.exp(-epsilon))
    beta = float(betainc(right, guesses - right + 1, chance))
    if delta == 0:
        return beta
    # The mean of i probabilities below `right` decreases once i has passed all that are not negligible.
    spread = np.sqrt(guesses * chance * (1 - chance))
    widest = min(right, int(2 * abs(right - guesses * chance) + 10 * spread) + 10)
    steps = np.arange(1, widest + 1)
    # P[W >= right - i] is 1 where i is `right`.
    least = np.maximum(right - steps, 1)
    below = np.where(steps < right, betainc(least, guesses - least + 1, chance), 1.0) - beta
    return min(1.0, beta + 2 * coins * delta * float((below / steps).max()))


def _largest_refuted(chance: Callable[[float], float], level: float) -> float:
    """Return the largest epsilon at which the increasing function `chance` is below `level`; 0 if there is none."""
    if chance(0.0) >= level:
        return 0.0
    low, high = 0.0, 1.0
    while chance(high) < level:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < level else (low, middle)
    return low


def _ranked(scores: ArrayLike, member: ArrayLike) -> tuple[Floats, Bools]:
    """Return the scores' ranks, with ties broken at random: a randomized test is valid, and helps with many ties."""
    score, truth = np.asarray(scores, np.float64), np.asarray(member)
    if truth.dtype != np.bool_:
        raise ValueError(f"member: must be booleans, got {truth.dtype}")
    if score.ndim != 1 or score.shape != truth.shape:
        raise ValueError(f"scores and member: must have the same shape (T,), got {score.shape} and {truth.shape}")
    if np.isnan(score).any():
        raise ValueError(f"scores: must not be NaN, got {int(np.isnan(score).sum())} NaN of {len(score)}")
    order = np.lexsort((np.random.default_rng(0).permutation(len(score)), score))
    ranks = np.empty(len(score))
    ranks[order] = np.arange(len(score))
    return ranks, truth


def _check_settings(delta: float, confidence: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"delta: must be in [0, 1), got {delta}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: must be in (0, 1), got {confidence}")
