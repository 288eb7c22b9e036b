"""How well scores separate members from non-members: AUC, TPR at low FPR, balanced accuracy, with intervals."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from metaleak.attacks.evaluation.intervals import Estimate, of_crossed, of_resampled
from metaleak.attacks.evaluation.roc import Bools, Counts, Floats, descending, non_members_needed

FPR_LEVELS = ("0.1", "0.01", "0.001")
"""The false-positive rates at which the true-positive rate is reported (Carlini et al. 2022)."""

_CELLS = 2_000_000  # Resampled targets in memory at a time, about 100 MB, for any number of targets.


class Evaluation(BaseModel):
    """The success of membership inference, each number with a 95 % interval (see `intervals.of_resampled`).

    - `auc`: the probability that a random member scores above a random non-member, ties counted half (the normalized
      Mann-Whitney U). 0.5 is guessing, 1 perfect; far *below* 0.5 is as much of a leak as far above.
    - `balanced_accuracy`: (TPR + TNR) / 2 at the threshold that is best *on these same targets*, never below 0.5. It
      is optimistic: with n targets of each kind and no leak its mean is 0.5 + 0.44 / sqrt(n). The interval is for
      that threshold. Reported to compare with papers that use it.
    - `tpr`: by false-positive rate (`FPR_LEVELS`), the largest TPR whose FPR is at most that rate; `None` where
      `non_members` is below 1 / FPR, too few to resolve it.

    `clusters` is the number of groups that were resampled (with two kinds of groups, the smaller number), `None` if
    targets were resampled. It is 1 if all targets are in one group: then targets were resampled, and the intervals
    describe the uncertainty for this group only. JSON keeps every digit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: Annotated[int, Field(ge=1)]
    non_members: Annotated[int, Field(ge=1)]
    auc: Estimate
    balanced_accuracy: Estimate
    tpr: dict[str, Estimate | None]
    clusters: Annotated[int, Field(ge=1)] | None = None


def evaluate(
    scores: ArrayLike,
    member: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    crossed: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Return the evaluation of `scores (T,)`, higher for "member", against the ground truth `member (T,)`, booleans.

    Only the order of the scores counts. Intervals are from `resamples` bootstrap resamples, in which members and
    non-members are drawn separately, so that every resample has both. Targets of one learner are dependent, as they
    rest on the same gradient: with `groups (T,)`, such as learner ids, whole groups are resampled instead (separately
    among groups of members only, of non-members only, and of both). If there is a single group, such as the one mean
    that a server saw, targets are resampled. `crossed (T,)` beside `groups` is for targets with two kinds of
    dependence, such as scores of several models about several points; see `intervals.of_crossed`.

    The same arguments give the same result. Raises `ValueError` for NaN scores, shapes that differ, members or
    non-members missing, or `resamples` below 1.

    Example:
        >>> found = evaluate([0.9, 0.8, 0.3, 0.4, 0.2, 0.1], [True, True, True, False, False, False])
        >>> round(found.auc.value, 3), found.tpr["0.01"]  # 3 non-members cannot resolve an FPR of 1 %.
        (0.889, None)
    """
    single = groups is not None and len(np.unique(np.asarray(groups))) == 1
    targets = _targets(scores, member, None if single else groups)
    if resamples < 1:
        raise ValueError(f"resamples: must be at least 1, got {resamples}")
    point = _measure(targets, np.ones((1, targets.total), np.int64), None)
    threshold = int(point.threshold[0])

    def measured(over: _Targets) -> list[_Measures]:
        return [_measure(over, weights, threshold) for weights in _resampled(over, resamples, seed)]

    parts = measured(targets)
    others = [] if crossed is None else [_targets(scores, member, crossed), _targets(scores, member, None)]
    beside = [measured(other) for other in others]

    members = int(targets.member.sum())
    non_members = targets.total - members
    fewest = min(members, non_members)
    clusters = fewest if groups is None or single else len(targets.strata)

    if others:
        clusters = min(clusters, len(others[0].strata))

    def estimate(of: Callable[[_Measures], Floats], units: int = fewest) -> Estimate:
        value, *drawn = (np.concatenate([of(one) for one in made]) for made in ([point], parts, *beside))
        if others:
            sizes = (len(targets.strata), len(others[0].strata))
            return of_crossed(float(value[0]), drawn[0], drawn[1], drawn[2], sizes, units)
        return of_resampled(float(value[0]), drawn[0], clusters, units)

    return Evaluation(
        members=members,
        non_members=non_members,
        auc=estimate(lambda made: made.auc),
        balanced_accuracy=estimate(lambda made: made.accuracy),
        tpr={
            level: estimate(partial(_rate, level), members)
            if non_members >= non_members_needed(float(level))
            else None
            for level in FPR_LEVELS
        },
        clusters=None if groups is None else 1 if single else clusters,
    )


def _rate(level: str, made: "_Measures") -> Floats:
    return made.tpr[level]


@dataclass(frozen=True)
class _Targets:
    """Targets sorted by score, high first.

    `member (T,)`; `group (T,)` in [0, G); `ends (K,)` of runs of equal scores; `strata (G,)` of the groups: those in
    the same stratum are resampled together.
    """

    member: Bools
    group: NDArray[np.intp]
    ends: Counts
    strata: Counts

    @property
    def total(self) -> int:
        return len(self.member)


@dataclass(frozen=True)
class _Measures:
    """Measures of B weightings, `(B,)` each; `threshold` indexes the K distinct scores."""

    auc: Floats
    accuracy: Floats
    tpr: dict[str, Floats]
    threshold: Counts


def _targets(scores: ArrayLike, member: ArrayLike, groups: ArrayLike | None) -> _Targets:
    score, truth = np.asarray(scores, np.float64), np.asarray(member)
    if truth.dtype != np.bool_:
        raise ValueError(f"member: must be booleans, got {truth.dtype}")
    if score.ndim != 1 or score.shape != truth.shape:
        raise ValueError(f"scores and member: must have the same shape (T,), got {score.shape} and {truth.shape}")
    if missing := int(np.isnan(score).sum()):
        raise ValueError(f"scores: must not be NaN, got {missing} NaN of {len(score)}")
    if truth.all() or not truth.any():
        raise ValueError(f"member: needs members and non-members, got {int(truth.sum())} and {int((~truth).sum())}")
    order, ends = descending(score)
    if groups is None:
        return _Targets(truth[order], np.arange(len(score)), ends, truth[order].astype(np.int64))
    group = np.asarray(groups)
    if group.shape != score.shape:
        raise ValueError(f"groups: must have the shape of scores, {score.shape}, got {group.shape}")
    names, index = np.unique(group, return_inverse=True)
    holds_members = np.bincount(index, truth, len(names)) > 0
    holds_others = np.bincount(index, ~truth, len(names)) > 0
    return _Targets(truth[order], index[order], ends, holds_members + 2 * holds_others)


def _resampled(targets: _Targets, resamples: int, seed: int) -> Iterator[Counts]:
    """Yield how often each target was drawn, `(B, T)`, in blocks of limited size."""
    random = np.random.default_rng(seed)
    block = max(1, _CELLS // targets.total)
    strata = [np.flatnonzero(targets.strata == stratum) for stratum in np.unique(targets.strata)]
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = np.empty((rows, len(targets.strata)), np.int64)
        for groups in strata:
            picks = random.integers(0, len(groups), (rows, len(groups)))
            picks += np.arange(rows)[:, None] * len(groups)
            counts = np.bincount(picks.ravel(), minlength=picks.size)
            drawn[:, groups] = counts.reshape(rows, len(groups))
        yield drawn[:, targets.group]


def _measure(targets: _Targets, weights: Counts, threshold: int | None) -> _Measures:
    """Return the measures under `weights (B, T)`; accuracy at `threshold`, or at the best one if `None`."""
    true = np.cumsum(weights * targets.member, axis=1)[:, targets.ends]
    false = np.cumsum(weights, axis=1)[:, targets.ends] - true
    members, others = true[:, -1:], false[:, -1:]
    # Trapezoids: a run of ties is a sloped segment, under which a tie counts half, as in Mann-Whitney's U.
    area = (np.diff(false, axis=1, prepend=0) * (true + np.diff(true, axis=1, prepend=0) * -0.5)).sum(axis=1)
    # The last threshold accepts everything, which has accuracy 0.5, so the best is at least that.
    gain = true / members - false / others
    best = gain.argmax(axis=1) if threshold is None else np.full(len(weights), threshold)
    tpr = {
        # 1e-9 allows for the rounding of level * count, such as 0.1 * 30.
        level: np.where(false <= float(level) * others + 1e-9, true, 0).max(axis=1) / members[:, 0]
        for level in FPR_LEVELS
    }
    accuracy = (1 + gain[np.arange(len(weights)), best]) / 2
    return _Measures(area / (members * others)[:, 0], accuracy, tpr, best)
