"""One membership classifier for all points, trained by leaving out one shadow at a time."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.attacks.pretraining.evidence import ShadowAnswers, clipped_log_odds
from metaleak.attacks.pretraining.gaussian_ratio import Gaussians, fitted
from metaleak.attacks.seeding import generator_for
from metaleak.attacks.work import Work


class GlobalClassifier(BaseModel):
    """A network with one `hidden` layer on features that mean the same for all points.

    Each shadow in turn takes the victim's place, with the Gaussians of `GaussianRatio` fitted to the other shadows;
    so one network learns from all points how to weigh the features. The features of a point are its log-likelihood
    ratio, its Mahalanobis distances to the means of members and of non-members, the distance between these means, and
    the answer's entropy and largest log odds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: Annotated[int, Field(ge=1, le=4096)] = 32
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    batch: Annotated[int, Field(ge=1)] = 512
    rate: Annotated[float, Field(gt=0)] = 3e-3

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return the log odds of "member", `(P,)`, 0 for points without both kinds of shadows."""
        generator = generator_for(work.seed, "global classifier")
        features = clipped_log_odds(shadows.probabilities).mean(dim=2)
        rows, labels = [], []
        for left_out in range(len(features)):
            others = [row for row in range(len(features)) if row != left_out]
            gaussians, both = fitted(features[others], shadows.member[others])
            rows.append(_described(gaussians.shrunken(), features[left_out], shadows.probabilities[left_out])[both])
            labels.append(shadows.member[left_out][both])
        known, member = torch.cat(rows), torch.cat(labels).float()
        mean, deviation = known.mean(dim=0), known.std(dim=0).clamp(min=1e-9)
        layers = [
            (torch.randn(known.shape[1], self.hidden, generator=generator) / known.shape[1] ** 0.5).requires_grad_(),
            torch.zeros(self.hidden, requires_grad=True),
            torch.zeros(self.hidden, requires_grad=True),
            torch.zeros((), requires_grad=True),
        ]
        scaled = ((known - mean) / deviation).float()
        optimizer = torch.optim.Adam(layers, self.rate)
        for _ in range(self.epochs):
            for some in torch.split(torch.randperm(len(scaled), generator=generator), self.batch):
                loss = F.binary_cross_entropy_with_logits(_logit(layers, scaled[some]), member[some])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        gaussians, both = fitted(features, shadows.member)
        seen = clipped_log_odds(victim).mean(dim=1)
        with torch.no_grad():
            asked = ((_described(gaussians.shrunken(), seen, victim) - mean) / deviation).float()
            return torch.where(both, _logit(layers, asked).double(), 0.0)


def _described(gaussians: Gaussians, features: Tensor, probabilities: Tensor) -> Tensor:
    """Return the network's input for each point, `(P, 6)`, from `features (P, D)` and `probabilities (P, A, K)`."""
    precision = torch.linalg.pinv(gaussians.covariance, hermitian=True, rtol=1e-9)

    def length(off: Tensor) -> Tensor:
        found: Tensor = ((off @ precision) * off).sum(dim=-1).clamp(min=0).sqrt()
        return found

    answers = probabilities.mean(dim=1)
    entropy = -torch.special.xlogy(answers, answers).sum(dim=-1)
    return torch.stack(
        [
            gaussians.ratio(features),
            length(features - gaussians.inside),
            length(features - gaussians.outside),
            length(gaussians.inside - gaussians.outside),
            entropy,
            answers.amax(dim=-1).clamp(1e-9, 1 - 1e-9).logit(),
        ],
        dim=1,
    )


def _logit(layers: list[Tensor], rows: Tensor) -> Tensor:
    first, shift, second, offset = layers
    return F.relu(rows @ first + shift) @ second + offset
