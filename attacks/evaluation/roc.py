"""The ROC curve of scores, with tied scores kept together."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Bools = NDArray[np.bool_]


def accepted(scores: Floats, member: Bools) -> tuple[Counts, Counts]:
    """Return how many members and non-members each threshold accepts, strictest threshold first.

    The result is `(true_positives (K,), false_positives (K,))` for the K distinct values of `scores (T,)`, with the
    ground truth `member (T,)`; a target is accepted if its score is at least the threshold. Infinite scores are
    allowed.
    """
    order, ends = descending(scores)
    true = np.cumsum(member[order], dtype=np.int64)[ends]
    return true, ends + 1 - true


def descending(scores: Floats) -> tuple[Counts, Counts]:
    """Return the order `(T,)` that sorts `scores` high to low, and the last place of each run of ties, `(K,)`.

    A threshold cannot separate equal scores, so only the ends of runs are points of the ROC curve.
    """
    order = np.argsort(-scores, kind="stable")
    high_to_low = scores[order]
    ends = np.flatnonzero(np.append(high_to_low[1:] != high_to_low[:-1], True))
    return order, ends


def roc_curve(scores: Floats, member: Bools) -> tuple[Floats, Floats]:
    """Return `(fpr (P,), tpr (P,))`, both rising from 0 to 1.

    There is one point per distinct score, and (0, 0); points inside a straight horizontal or vertical segment are
    dropped. Needs at least one member and one non-member.

    Example:
        >>> fpr, tpr = roc_curve(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]))
        >>> fpr.tolist(), tpr.tolist()
        ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    true, false = accepted(scores, member)
    true, false = np.append(0, true), np.append(0, false)
    corner = (np.diff(true, 2) != 0) | (np.diff(false, 2) != 0)
    keep = np.concatenate(([True], corner, [True]))
    return false[keep] / false[-1], true[keep] / true[-1]


def non_members_needed(level: float) -> int:
    """Return the number of non-members needed to resolve a false-positive rate of `level`, in (0, 1]: 1 / level.

    With fewer, an FPR of at most `level` means no false positive at all.
    """
    return math.ceil(1 / level - 1e-9)
