"""What shadow models answered about the points whose membership is asked."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from metaleak.attacks.tensors import Tensors
from metaleak.attacks.work import Work

_TINY = 1e-15


@dataclass(frozen=True)
class ShadowAnswers(Tensors):
    """The answers of S shadow models to A queries about each of P points, over K classes, and their members.

    `probabilities (S, P, A, K)` float64, `member (S, P)` booleans: whether the start of shadow s was trained on
    point p. The first query of a point is the point itself, the others are its augmentations.
    """

    probabilities: Tensor
    member: Tensor

    def of(self, rows: Tensor) -> "ShadowAnswers":
        """Return those of the shadows in `rows (n,)` int64."""
        return ShadowAnswers(self.probabilities[rows], self.member[rows])

    def others(self, row: int) -> "ShadowAnswers":
        """Return all shadows but that in `row`."""
        return self.of(torch.tensor([one for one in range(len(self.member)) if one != row]))


@runtime_checkable
class PretrainingAttack(Protocol):
    """An attack on the examples behind a released model's start; also its configuration, a frozen pydantic model.

    One with `sees_start = True` is given, as a ceiling, the probability that the *start* gives each point's own
    label, `K = 1`, in the answers' place.
    """

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return a score `(P,)` for every point, higher for "the start was trained on it".

        `victim (P, A, K)` are the answers of the model that is attacked. The same arguments give the same scores.
        """
        ...


def log_odds(probabilities: Tensor) -> Tensor:
    """Return `log p - log(1 - p)` of `probabilities (...)`, finite for every one in [0, 1]."""
    return (probabilities + _TINY).log() - (1 - probabilities + _TINY).log()


def clipped_log_odds(probabilities: Tensor, norm: float = 1.0) -> Tensor:
    """Return the log odds of `probabilities (..., K)`, scaled down to the L2 `norm` where they are longer.

    Abascal et al. 2024, section 4.1.
    """
    odds = log_odds(probabilities)
    factor: Tensor = (norm / odds.norm(dim=-1, keepdim=True)).clamp(max=1.0)
    return odds * factor
