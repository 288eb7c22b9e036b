"""The receiver operating characteristic of scores, with tied scores kept together."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Bools = NDArray[np.bool_]


def accepted(scores: Floats, member: Bools) -> tuple[Counts, Counts]:
    """Return how many members and non-members each threshold accepts, strictest threshold first.

    `scores (T,)` and `member (T,)` give `(true_positives (K,), false_positives (K,))` for the K distinct
    scores; a target is accepted when its score is at least the threshold. Infinite scores are ordinary.
    """
    order, ends = descending(scores)
    true = np.cumsum(member[order], dtype=np.int64)[ends]
    return true, ends + 1 - true


def descending(scores: Floats) -> tuple[Counts, Counts]:
    """Return the order `(T,)` that sorts `scores` high to low, and where each run of equals ends `(K,)`.

    A threshold cannot separate equal scores, so only the ends of runs are points of a curve.
    """
    order = np.argsort(-scores, kind="stable")
    high_to_low = scores[order]
    ends = np.flatnonzero(np.append(high_to_low[1:] != high_to_low[:-1], True))
    return order, ends


def roc_curve(scores: Floats, member: Bools) -> tuple[Floats, Floats]:
    """Return `(fpr (K+1,), tpr (K+1,))`, both rising from 0 to 1, one point a distinct score.

    Points inside a horizontal or vertical stretch are dropped: the curve is the same without them.
    Needs at least one member and one non-member.
    """
    true, false = accepted(scores, member)
    true, false = np.append(0, true), np.append(0, false)
    corner = (np.diff(true, 2) != 0) | (np.diff(false, 2) != 0)
    keep = np.concatenate(([True], corner, [True]))
    return false[keep] / false[-1], true[keep] / true[-1]


def non_members_needed(level: float) -> int:
    """Return the fewest non-members that can resolve a false-positive rate of `level`, in (0, 1]: 1 / level.

    With fewer, "at most level" and "none at all" are the same statement.
    """
    return math.ceil(1 / level - 1e-9)
