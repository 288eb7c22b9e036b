"""What several rounds tell together: weights learned from shadow learners that take part in the same rounds."""

import math

import torch
from torch import Tensor

from metaleak.attacks.shadows.discriminant import fit_discriminant


def weighed(ratios: Tensor, members: Tensor, others: Tensor, chance: float) -> Tensor:
    """Return the log-likelihood ratio of each target from its `ratios (T, R)` of R rounds, `(T,)` float64.

    `members (M, R)` and `others (N, R)` are the same of the images that shadow learners hold and do not hold. Rounds
    are not independent, since what hides an image, such as its learner's other images, stays from round to round,
    and they do not tell equally much: so where the same sets are used in every round the ratios are the features of
    one more linear discriminant. Where an image is in the set of a round with the `chance` below 1 alone, by itself
    in every round, the law of a member's round is a mixture, and the logarithms of the R mixtures add up.

    NaN stands for a round that cannot hold the target: it tells nothing.
    """
    if chance < 1:
        known = ratios.double().nan_to_num(0.0)
        base = torch.full_like(known, math.log1p(-chance))
        return torch.logaddexp(base, known + math.log(chance)).sum(dim=1)
    middle = (members.double().mean(dim=0) + others.double().mean(dim=0)) / 2
    filled = torch.where(ratios.isnan(), middle, ratios.double())
    return fit_discriminant(members, others).log_ratio(filled)
