"""Confidence in relation to that of reference models, and to that of other points: RMIA with few shadows."""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.attacks.pretraining.evidence import ShadowAnswers
from metaleak.attacks.work import Work


class RelativeConfidence(BaseModel):
    """RMIA (Zarifzadeh et al. 2024, equations 2 and 10), of the class that the victim finds likeliest.

    A point's ratio is the victim's confidence over the mean confidence of the shadows, members and others with equal
    weight; its score is the part of all points whose ratio times `gamma` it exceeds. The points that are asked about
    stand for the population. Members are taken to have higher confidence, which for a finetuned model need not hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gamma: Annotated[float, Field(gt=0)] = 1.0

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return the part of points that each is above, `(P,)` in [0, 1]."""
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
    """Return the mean `(P,)` of `asked (S, P)` over the chosen shadows, over all where none is."""
    weight = chosen | ~chosen.any(dim=0)
    return (asked * weight).sum(dim=0) / weight.sum(dim=0)
