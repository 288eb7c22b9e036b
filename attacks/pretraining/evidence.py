"""The answers of shadow models about the points whose membership is inferred, and the protocol of attacks on them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from metaleak.attacks.tensors import Tensors
from metaleak.attacks.work import Work

_TINY = 1e-15


@dataclass(frozen=True)
class ShadowAnswers(Tensors):
    """The answers of S shadow models to A queries about each of P points, and which points were their members.

    `probabilities (S, P, A, K)` float64, over K classes; `member (S, P)` booleans: whether shadow s was pretrained on
    point p. The first query of a point is the point itself, the others are augmentations of it.
    """

    probabilities: Tensor
    member: Tensor

    def of(self, rows: Tensor) -> "ShadowAnswers":
        """Return the answers of the shadows in `rows (n,)` int64."""
        return ShadowAnswers(self.probabilities[rows], self.member[rows])

    def others(self, row: int) -> "ShadowAnswers":
        """Return the answers of all shadows except the one in `row`."""
        return self.of(torch.tensor([one for one in range(len(self.member)) if one != row]))


@runtime_checkable
class PretrainingAttack(Protocol):
    """An attack on the pretraining data of a released model; also its own configuration, a frozen pydantic model.

    An attack with `sees_pretrained = True` serves as a ceiling: in place of answers of finetuned models it is given
    the probability that each *pretrained* model assigns to a point's true label, so `K = 1`.
    """

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return a score for every point, `(P,)`, higher for "the victim was pretrained on it".

        `victim (P, A, K)`: the answers of the attacked model. The same arguments give the same scores.
        """
        ...


def log_odds(probabilities: Tensor) -> Tensor:
    """Return `log p - log(1 - p)` of `probabilities (...)`, finite for all values in [0, 1]."""
    return (probabilities + _TINY).log() - (1 - probabilities + _TINY).log()


def clipped_log_odds(probabilities: Tensor, norm: float = 1.0) -> Tensor:
    """Return the log odds of `probabilities (..., K)`, with their L2 norm over the classes clipped to `norm`.

    Source: Abascal et al. 2024, section 4.1.
    """
    odds = log_odds(probabilities)
    factor: Tensor = (norm / odds.norm(dim=-1, keepdim=True)).clamp(max=1.0)
    return odds * factor
