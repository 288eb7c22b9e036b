"""The combined evidence of several rounds, with weights learned from shadow learners in the same rounds."""

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

    `targets (T,)` are those of the targets, NaN for a target that cannot be in the round's sets, with their
    `chances (T,)` (see `Round`); `members (M,)` and `others (N,)` are those of images that shadow learners hold and
    do not hold.
    """

    targets: Tensor
    chances: Tensor
    members: Tensor
    others: Tensor


def weighted_over(rounds: Rounds, ratios: Callable[[Round], RoundRatios], progress: Progress | None = None) -> Tensor:
    """Return the log-likelihood ratio of each target from the `ratios` of all rounds, `(T,)`; see `weighted`.

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
    return weighted(targets, members, others, found[0]["chances"].cpu())


def weighted(ratios: Tensor, members: Tensor, others: Tensor, chances: Tensor) -> Tensor:
    """Return the log-likelihood ratio of each target from its `ratios (T, R)` of R rounds, `(T,)` float64.

    `members (M, R)` and `others (N, R)` are the ratios of images that shadow learners hold and do not hold. Rounds
    are neither independent, since a learner's other images, which hide the target, stay the same, nor equally
    informative. So if the sets are the same in every round, the ratios are the features of a second linear
    discriminant. If sets are drawn anew in every round, so that an image is in a round's set with a probability below
    1 (`chances (T,)`), the distribution of a member's ratio is a mixture, and the logarithms of the R mixture ratios
    are added.

    NaN marks a round whose sets cannot contain the target. The discriminant for such a target is fitted without that
    round: omitting a fitted term would be wrong, since of two similar rounds one may have a negative weight.
    """
    chance = chances.double()[:, None]
    mixtures = torch.logaddexp(torch.log1p(-chance), ratios.double().nan_to_num(0.0) + chance.log()).sum(dim=1)
    patterns, pattern_of = torch.unique(~ratios.isnan(), dim=0, return_inverse=True)
    scores = torch.zeros_like(mixtures)
    for number, usable in enumerate(patterns):
        if bool(usable.any()):
            asked = pattern_of == number
            learned = fit_discriminant(members[:, usable], others[:, usable])
            scores[asked] = learned.log_ratio(ratios[asked][:, usable])
    return torch.where(chances < 1, mixtures, scores)
