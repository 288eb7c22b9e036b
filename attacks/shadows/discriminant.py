"""A linear discriminant that maps features to a log-likelihood ratio, fitted to known members and non-members."""

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 1e-3


@dataclass(frozen=True)
class Discriminant:
    """A linear score of features `(T, F)`, with its mean and standard deviation for members and for others."""

    direction: Tensor
    member: tuple[float, float]
    other: tuple[float, float]

    def log_ratio(self, features: Tensor) -> Tensor:
        """Return log p(features | member) - log p(features | other), `(T,)` float64, rising with the score.

        Both distributions get the same variance, so that the ratio stays monotonic outside of the range of fitted
        scores.
        """
        (high, wide), (low, narrow) = self.member, self.other
        variance = (wide**2 + narrow**2) / 2
        return (high - low) / variance * (features.double() @ self.direction - (high + low) / 2)


def fit_discriminant(members: Tensor, others: Tensor) -> Discriminant:
    """Return Fisher's linear discriminant of `members (M, F)` and `others (N, F)`, regularized by a small ridge.

    Its direction is from the others to the members. If the two do not differ, its ratios are near zero; without
    features they are zero.
    """
    members, others = members.double(), others.double()
    difference = members.mean(dim=0) - others.mean(dim=0)
    direction = difference
    if len(difference):
        within = (
            torch.cov(members.T).reshape(len(difference), -1) + torch.cov(others.T).reshape(len(difference), -1)
        ) / 2
        unit = torch.eye(len(difference), dtype=torch.float64, device=within.device)
        ridge = _RIDGE * within.diagonal().mean().clamp(min=1e-30) * unit
        direction = torch.linalg.solve(within + ridge, difference)
    scores = members @ direction, others @ direction
    tiny = 1e-12
    member, other = ((float(score.mean()), float(score.std()) + tiny) for score in scores)
    return Discriminant(direction, member, other)
