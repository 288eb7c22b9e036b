"""RMIA: a model's confidence relative to that of reference models, compared with other points."""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.attacks.pretraining.evidence import ShadowAnswers
from metaleak.attacks.work import Work


class RelativeConfidence(BaseModel):
    """RMIA (Zarifzadeh et al. 2024, equations 2 and 10) on the class that the victim finds most likely.

    A point's ratio is the victim's confidence divided by the shadows' mean confidence, in which those that were
    pretrained on the point and the others have equal weight. Its score is the fraction of points whose ratio times
    `gamma` is smaller than its own; the targets themselves serve as the population. RMIA assumes that members have
    higher confidence, which need not hold for a finetuned model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gamma: Annotated[float, Field(gt=0)] = 1.0

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return for each point the fraction of points that it exceeds, `(P,)` in [0, 1]."""
        answers = victim.mean(dim=1)
        likeliest = answers.argmax(dim=-1)
        confidence = answers.gather(-1, likeliest[:, None])[:, 0]
        of_shadows = shadows.probabilities.mean(dim=2)
        asked = of_shadows.gather(-1, likeliest[None, :, None].expand(len(of_shadows), -1, 1))[..., 0]
        reference = sum(_mean_over(asked, chosen) for chosen in (shadows.member, ~shadows.member)) / 2
        ratio = confidence / reference
        ordered = (ratio * self.gamma).sort().values
        below: Tensor = torch.searchsorted(ordered, ratio.contiguous())
        return below.double() / len(ratio)


def _mean_over(asked: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of `asked (S, P)` over the chosen shadows, or over all where none is chosen, `(P,)`."""
    weight = chosen | ~chosen.any(dim=0)
    return (asked * weight).sum(dim=0) / weight.sum(dim=0)
