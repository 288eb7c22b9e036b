"""How well scores tell members from non-members: AUC, TPR at low FPR, balanced accuracy, with intervals."""

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

_CELLS = 2_000_000  # Resampled targets held at once: about 100 MB, whatever the number of targets.


class Evaluation(BaseModel):
    """What an attack's scores achieved, each number with a 95 % interval, see `intervals.of_resampled`.

    - `auc`: the chance that a random member scores above a random non-member, ties counted half (the
      normalized Mann-Whitney U). 0.5 is guessing, 1 perfect; far *below* 0.5 leaks as much as far above.
    - `balanced_accuracy`: (TPR + TNR) / 2 at the best threshold *for these very targets*, never below 0.5.
      It is optimistic: with n targets of each kind and no leak it averages 0.5 + 0.44 / sqrt(n). The interval
      keeps that threshold. It is here to compare with papers that report it.
    - `tpr`: by false-positive rate (`FPR_LEVELS`), the largest TPR whose FPR is at most that rate, `None`
      where `non_members` is below 1 / FPR, too few to resolve it.

    `clusters` is the number of groups that were resampled, of two kinds the fewer, `None` when targets were. It is 1
    where all targets are of one group: then targets were resampled, and the intervals say how sure the numbers are
    for this group alone. JSON keeps every digit.
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
    """Return the evaluation of `scores (T,)`, higher for "member", against the truth `member (T,)`, booleans.

    Members and non-members are resampled apart, so that every resample has both. Targets asked of one learner
    lean on one gradient: with `groups (T,)`, such as learner ids, whole groups are resampled instead (among
    groups that hold members only, non-members only, or both), and the interval covers that dependence.
    Of a single group, such as the one mean that a server saw, targets are resampled. Targets that share one of two
    things, such as a point that is asked of several models, and a model that is asked about several points, have
    `crossed (T,)` beside `groups`, see `intervals.of_crossed`.
    Raises `ValueError` for NaN scores, shapes that differ, or a missing class.
    Only the order of the scores counts; the same arguments give the same result.
    """
    single = groups is not None and len(np.unique(np.asarray(groups))) == 1
    targets = _targets(scores, member, None if single else groups)
    if resamples < 1:
        raise ValueError(f"resamples: {resamples} is not allowed; at least 1")
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

    `member (T,)`; `group (T,)` in [0, G); `ends (K,)` of runs of equal scores; `strata (G,)` of the groups.
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
        raise ValueError(f"member: {truth.dtype} is not allowed; booleans")
    if score.ndim != 1 or score.shape != truth.shape:
        raise ValueError(f"scores {score.shape} and member {truth.shape} must be of one length")
    if missing := int(np.isnan(score).sum()):
        raise ValueError(f"scores: {missing} of {len(score)} are NaN")
    if truth.all() or not truth.any():
        raise ValueError(f"{int(truth.sum())} members and {int((~truth).sum())} non-members: needs both")
    order, ends = descending(score)
    if groups is None:
        return _Targets(truth[order], np.arange(len(score)), ends, truth[order].astype(np.int64))
    group = np.asarray(groups)
    if group.shape != score.shape:
        raise ValueError(f"scores {score.shape} and groups {group.shape} must be of one length")
    names, index = np.unique(group, return_inverse=True)
    holds_members = np.bincount(index, truth, len(names)) > 0
    holds_others = np.bincount(index, ~truth, len(names)) > 0
    return _Targets(truth[order], index[order], ends, holds_members + 2 * holds_others)


def _resampled(targets: _Targets, resamples: int, seed: int) -> Iterator[Counts]:
    """Yield how often each target was drawn, `(B, T)`, in blocks that bound the memory."""
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
    """Return the measures under `weights (B, T)`; accuracy at `threshold`, or at the best when `None`."""
    true = np.cumsum(weights * targets.member, axis=1)[:, targets.ends]
    false = np.cumsum(weights, axis=1)[:, targets.ends] - true
    members, others = true[:, -1:], false[:, -1:]
    # Trapezoids: a run of ties is a slope, whose area is the half that Mann-Whitney gives to ties.
    area = (np.diff(false, axis=1, prepend=0) * (true + np.diff(true, axis=1, prepend=0) * -0.5)).sum(axis=1)
    # The last threshold accepts everything, which is 0.5: the best is never below it.
    gain = true / members - false / others
    best = gain.argmax(axis=1) if threshold is None else np.full(len(weights), threshold)
    tpr = {
        # 1e-9 forgives the rounding of level * count, such as 0.1 * 30.
        level: np.where(false <= float(level) * others + 1e-9, true, 0).max(axis=1) / members[:, 0]
        for level in FPR_LEVELS
    }
    accuracy = (1 + gain[np.arange(len(weights)), best]) / 2
    return _Measures(area / (members * others)[:, 0], accuracy, tpr, best)
