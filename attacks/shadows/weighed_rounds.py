"""The joint evidence of several rounds, with weights learned from shadow learners in the same rounds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.attack import Progress
from metaleak.attacks.rounds import Evidence, Round, Rounds, evidence_of
from metaleak.attacks.shadows.discriminant import fit_discriminant


@dataclass(frozen=True)
class RoundRatios:
    """Log-likelihood ratios in one round, float64.

    Of the `targets (T,)`, NaN where the round cannot hold one, with their `chances (T,)` (see `Round`), and of the
    images that shadow learners hold and do not hold, `members (M,)` and `others (N,)`.
    """

    targets: Tensor
    chances: Tensor
    members: Tensor
    others: Tensor


def weighed_over(rounds: Rounds, ratios: Callable[[Round], RoundRatios], progress: Progress | None = None) -> Tensor:
    """Return the log-likelihood ratio of each target from the `ratios` of every round, `(T,)`; see `weighed`.

    The shadow learners must hold the same images in every round.
    """

    def evidence(round: Round) -> Evidence:
        return vars(ratios(round))

    found = []
    for number in range(len(rounds)):
        found.append(evidence_of(rounds, number, evidence))
        if progress is not None:
            progress(number + 1, len(rounds))
    targets, members, others = (
        torch.stack([one[name].cpu() for one in found], dim=1) for name in ("targets", "members", "others")
    )
    return weighed(targets, members, others, found[0]["chances"].cpu())


def weighed(ratios: Tensor, members: Tensor, others: Tensor, chances: Tensor) -> Tensor:
    """Return the log-likelihood ratio of each target from its `ratios (T, R)` of R rounds, `(T,)` float64.

    `members (M, R)` and `others (N, R)` are the same of the images that shadow learners hold and do not hold. Rounds
    are not independent, since what hides an image, such as its learner's other images, stays the same, and they are
    not equally informative. So where the same sets are used in every round, the ratios are the features of one more
    linear discriminant. Where sets are drawn anew in every round, so that an image is in a round's set with a chance
    below 1 (`chances (T,)`), the distribution of a member's ratio is a mixture, and the logarithms of the R mixtures
    are added.

    NaN marks a round that cannot hold the target. The discriminant of such a target is fitted without that round, for
    of two similar rounds one may have a negative weight beside the other.
    """
    chance = chances.double()[:, None]
    mixtures = torch.logaddexp(torch.log1p(-chance), ratios.double().nan_to_num(0.0) + chance.log()).sum(dim=1)
    patterns, pattern_of = torch.unique(~ratios.isnan(), dim=0, return_inverse=True)
    scores = torch.zeros_like(mixtures)
    for number, told in enumerate(patterns):
        if bool(told.any()):
            asked = pattern_of == number
            learned = fit_discriminant(members[:, told], others[:, told])
            scores[asked] = learned.log_ratio(ratios[asked][:, told])
    return torch.where(chances < 1, mixtures, scores)
