"""Lower bounds on epsilon from what an attack achieved: what a defense that promises less cannot be.

A mechanism that is (epsilon, delta)-differentially private bounds every test of "this image" against "another one in
its place": TPR <= exp(epsilon) FPR + delta, and 1 - FPR <= exp(epsilon) (1 - TPR) + delta (Kairouz, Oh and Viswanath
2015, theorem 2.1). So an attack's rates bound epsilon from below, with the confidence with which they are known. The
neighbors are those of our defenses: one image *replaced*, for a member is an image that the learner holds and a
non-member an image of the same class that could have stood in the same place.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincinv, ndtri

from metaleak.attacks.evaluation.roc import Bools, Counts, Floats
from metaleak.defenses import gaussian_epsilon

_STEP = 4  # Between the ranks: with 2, more of the error goes into the correction than finer points bring back.


def epsilon_lower_bound(
    scores: ArrayLike,
    member: ArrayLike,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> float:
    """Return a lower bound on the epsilon at `delta` of whatever the attack attacked, in [0, inf).

    `scores (T,)`, higher for "member", of targets with the truth `member (T,)`, booleans. It exceeds the true epsilon
    with a chance of at most 1 - `confidence`, which holds for any number of targets (Nasr et al. 2023, "Tight
    Auditing of Differentially Private Machine Learning": Clopper-Pearson intervals of FPR and TPR).

    The thresholds are the scores of non-members (for the second inequality: of members) whose *ranks* are fixed
    before a score is looked at: n/4, n/16, ... and the first. The FPR of such a threshold has the Beta law of an
    order statistic, the one of Clopper and Pearson (ties are broken by lot), so that all targets serve for the
    choice and for the estimate. All points share the error (Bonferroni). On Gaussian scores this is sharper than a
    threshold chosen on one half of the targets and measured on the other: 2.15 to 1.74 with 500 members and 500
    non-members, 1.6 standard deviations apart.

    Targets must be independent. Those of one of the `groups (T,)`, such as a learner, share its noise: one target of
    each group counts, the first member of every second group that has both kinds and the first non-member of the
    others, so that the two rates are independent, too. So the order of targets must say nothing of their scores.

    Raises `ValueError` for NaN scores, shapes that differ, or settings outside (0, 1) (`delta` may be 0).
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

    As `epsilon_lower_bound`, but the rates bound the mechanism's mu: no test of a mu-GDP mechanism has
    TPR > Phi(Phi^-1(FPR) + mu) (Dong, Roth and Su 2022), and its epsilon at `delta` is that of mu. Sharper, as rates
    in the middle of the curve count, which can be measured. Void for any other mechanism.
    """
    _check_settings(delta, confidence)
    rates = _rates(scores, member, groups, confidence)
    apart = max([0.0, *(float(ndtri(tpr) - ndtri(fpr)) for tpr, fpr in rates if tpr > fpr)])
    return gaussian_epsilon(1 / apart, 1, delta) if apart > 0 else 0.0


def gaussian_epsilon_of_guesses(right: int, guesses: int, *, delta: float = 1e-5, confidence: float = 0.95) -> float:
    """Return a lower bound on the epsilon at `delta` of a mechanism *known to be Gaussian*, in [0, inf).

    Of `guesses` independent guesses, each about a fair coin of its own that chose between two neighbors, `right` were
    right. No test of a mu-GDP mechanism is right with a chance above Phi(mu / 2) (Dong, Roth and Su 2022, where
    both of its errors are equal), so the Clopper-Pearson bound on that chance bounds mu. One bound on one number, and
    so sharper than `gaussian_epsilon_lower_bound`, where the threshold was fixed before these scores were seen.
    Raises `ValueError` for counts or settings outside their ranges.
    """
    _check_settings(delta, confidence)
    if not 0 <= right <= guesses:
        raise ValueError(f"right: must be in [0, {guesses}], the number of guesses, got {right}")
    apart = 2 * float(ndtri(_at_least(right, guesses, 1 - confidence)))
    return gaussian_epsilon(1 / apart, 1, delta) if apart > 0 else 0.0


def one_run_lower_bound(
    scores: ArrayLike, member: ArrayLike, *, delta: float = 1e-5, confidence: float = 0.95
) -> float:
    """Return a lower bound on epsilon from one run in which many targets were members by chance, in [0, inf).

    Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", theorem 5.2: of r guesses about m
    coins, v were right; under (epsilon, delta) that happens with a chance of at most P[Binomial(r, e^epsilon /
    (1 + e^epsilon)) >= v] and a term for delta. Targets may share noise. The guesses are the r/2 highest scores
    ("member") and the r/2 lowest, for r fixed beforehand: m, m/4, m/16, ..., which share the error (Bonferroni).

    It assumes that every target is a member by a fair coin of its own, thrown for this run. Ours approximate that:
    members are drawn among what learners hold, non-members among what nobody holds, in fixed numbers, of which here
    the first are taken, as many of each. So report it beside `epsilon_lower_bound`, and let nothing hang on it.
    Raises `ValueError` as that does.
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
    """Yield lower bounds on a rate of acceptance with upper bounds on its rate under the other hypothesis.

    All bounds hold at once with `confidence`: (TPR, FPR) and (TNR, FNR) at every operating point.
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
    """Return the lower Clopper-Pearson bound on a chance, too high with a chance of at most `error`."""
    return float(betaincinv(successes, trials - successes + 1, error)) if successes else 0.0


def _one_of_each(truth: Bools, groups: Counts) -> Counts:
    """Return the indices of one target of each group, half of the mixed groups for a member."""
    if groups.shape != truth.shape:
        raise ValueError(f"member {truth.shape} and groups {groups.shape} must be of one length")
    members, non_members = (dict(_firsts(groups, kind)) for kind in (truth, ~truth))
    mixed = sorted(members[group] for group in members.keys() & non_members.keys())
    as_non_members = {groups[index] for index in mixed[1::2]}
    kept = [index for group, index in members.items() if group not in as_non_members] + [
        index for group, index in non_members.items() if group not in members or group in as_non_members
    ]
    return np.array(sorted(kept), np.int64)


def _firsts(groups: Counts, kind: Bools) -> Iterator[tuple[object, int]]:
    """Yield every group that has a target of this kind, with the index of its first."""
    places = np.flatnonzero(kind)
    names, first = np.unique(groups[places], return_index=True)
    yield from zip(names.tolist(), places[first].tolist(), strict=True)


def _chance(coins: int, guesses: int, right: int, delta: float, epsilon: float) -> float:
    """Return a bound on the chance of at least `right` right guesses under (`epsilon`, `delta`).

    The paper's beta + 2 m delta max_i (P[right > W >= right - i] / i), its algorithm in appendix D.
    """
    if right == 0:
        return 1.0
    chance = 1 / (1 + np.exp(-epsilon))
    beta = float(betainc(right, guesses - right + 1, chance))
    if delta == 0:
        return beta
    # The mean over i chances below `right`: it falls once i has passed all that weigh anything.
    spread = np.sqrt(guesses * chance * (1 - chance))
    widest = min(right, int(2 * abs(right - guesses * chance) + 10 * spread) + 10)
    steps = np.arange(1, widest + 1)
    # P[W >= right - i] is 1 where i is `right`.
    least = np.maximum(right - steps, 1)
    below = np.where(steps < right, betainc(least, guesses - least + 1, chance), 1.0) - beta
    return min(1.0, beta + 2 * coins * delta * float((below / steps).max()))


def _largest_refuted(chance: Callable[[float], float], level: float) -> float:
    """Return the largest epsilon at which `chance`, which grows with it, is below `level`; 0 if there is none."""
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
    """Return the scores' ranks, ties broken by lot: a test may throw coins, too, and needs them where many tie."""
    score, truth = np.asarray(scores, np.float64), np.asarray(member)
    if truth.dtype != np.bool_:
        raise ValueError(f"member: {truth.dtype} is not allowed; booleans")
    if score.ndim != 1 or score.shape != truth.shape:
        raise ValueError(f"scores {score.shape} and member {truth.shape} must be of one length")
    if np.isnan(score).any():
        raise ValueError(f"scores: {int(np.isnan(score).sum())} of {len(score)} are NaN")
    order = np.lexsort((np.random.default_rng(0).permutation(len(score)), score))
    ranks = np.empty(len(score))
    ranks[order] = np.arange(len(score))
    return ranks, truth


def _check_settings(delta: float, confidence: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"delta: must be in [0, 1), got {delta}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: must be in (0, 1), got {confidence}")
