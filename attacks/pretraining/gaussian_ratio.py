"""The ratio of two Gaussian likelihoods, with a mean per point and one covariance for all points."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.attacks.pretraining.evidence import ShadowAnswers, clipped_log_odds, log_odds
from metaleak.attacks.work import Work


class GaussianRatio(BaseModel):
    """Likelihood ratio of a released model's answer under two Gaussians, one for members and one for non-members.

    The features are the log odds of an answer, with their L2 norm clipped to `clip` (`None`: not clipped). `queries`
    says which of a point's answers are used: the `first`, the `mean` of all, or all of them concatenated (`joint`).
    Each point has two means, one over the shadows that were pretrained on it and one over the others. All points
    share one covariance, since no point has enough shadows to estimate its own.

    With `shrunken` the difference of a point's two means is shrunk toward the mean difference over all points, the
    more, the less these differences vary beyond the noise of estimating them from few shadows (empirical Bayes; Efron
    and Morris 1973).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip: Annotated[float, Field(gt=0)] | None = 1.0
    queries: Literal["first", "mean", "joint"] = "first"
    shrunken: bool = True

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return the log-likelihood ratios `(P,)`, 0 for points without both kinds of shadows."""
        return gaussian_ratio(
            self._features(shadows.probabilities), shadows.member, self._features(victim), self.shrunken
        )

    def _features(self, probabilities: Tensor) -> Tensor:
        odds = log_odds(probabilities) if self.clip is None else clipped_log_odds(probabilities, self.clip)
        if self.queries == "joint":
            return odds.flatten(-2)
        return odds.mean(dim=-2) if self.queries == "mean" else odds[..., 0, :]


@dataclass(frozen=True)
class Gaussians:
    """Two Gaussians for each of P points in D dimensions, one for members and one for non-members.

    `inside (P, D)` and `outside (P, D)` are the means over the shadows that were pretrained on the point and over the
    others, `members (P,)` and `others (P,)` how many these are; `covariance (D, D)` is the same for all.
    """

    inside: Tensor
    outside: Tensor
    covariance: Tensor
    members: Tensor
    others: Tensor

    def ratio(self, features: Tensor) -> Tensor:
        """Return the log-likelihood ratios `(P,)` of `features (P, D)`.

        Since probabilities add up to 1, the covariance may be singular: directions without variance are ignored.
        """
        precision = torch.linalg.pinv(self.covariance, hermitian=True, rtol=1e-9)

        def distance(mean: Tensor) -> Tensor:
            off = features - mean
            found: Tensor = ((off @ precision) * off).sum(dim=-1)
            return found

        return (distance(self.outside) - distance(self.inside)) / 2

    def shrunken(self) -> "Gaussians":
        """Return the Gaussians with the difference of each point's means replaced by its posterior mean.

        The prior of the differences is a Gaussian around their mean over points. Its covariance is the observed one
        minus that of the means' estimation noise, with negative eigenvalues set to 0.
        """
        difference = self.inside - self.outside
        noise = 1 / self.members + 1 / self.others
        center = difference.mean(dim=0)
        spread = (difference - center).mT @ (difference - center) / len(difference)
        values, vectors = torch.linalg.eigh(spread - self.covariance * noise.mean())
        prior = (vectors * values.clamp(min=0)) @ vectors.mT
        observed = prior + self.covariance * noise[:, None, None]
        gain = prior @ torch.linalg.pinv(observed, hermitian=True, rtol=1e-9)
        kept = center + (gain @ (difference - center)[..., None])[..., 0]
        # The mean over all shadows is estimated better than the difference, and is not shrunk.
        part = (self.members / (self.members + self.others))[:, None]
        middle = part * self.inside + (1 - part) * self.outside
        return Gaussians(middle + (1 - part) * kept, middle - part * kept, self.covariance, self.members, self.others)


def fitted(features: Tensor, member: Tensor) -> tuple[Gaussians, Tensor]:
    """Return the Gaussians of `features (S, P, D)` by `member (S, P)`, and which points they could be fitted to.

    Where all shadows were pretrained on a point, or none was, its two means are equal, so that its ratio is 0. Raises
    `ValueError` if no point has both kinds of shadows, or there are fewer than 3 shadows.
    """
    if len(features) < 3:
        raise ValueError(f"at least 3 shadow models are needed, got {len(features)}")
    inside = member.to(features.dtype)
    members, others = inside.sum(dim=0), (1 - inside).sum(dim=0)
    both = (members > 0) & (others > 0)
    if not bool(both.any()):
        raise ValueError(
            "every point is in the pretraining set of all shadow models or of none: some models must differ"
        )
    means = [
        (weight[..., None] * features).sum(dim=0) / count.clamp(min=1)[:, None]
        for weight, count in ((inside, members), (1 - inside, others))
    ]
    overall = features.mean(dim=0)
    means = [torch.where(both[:, None], mean, overall) for mean in means]
    rest = features - torch.where(member[..., None], means[0], means[1])
    degrees = int((len(features) - 1 - both.long()).sum())
    covariance = torch.einsum("spd,spe->de", rest, rest) / degrees
    return Gaussians(means[0], means[1], covariance, members.clamp(min=1), others.clamp(min=1)), both


def gaussian_ratio(features: Tensor, member: Tensor, victim: Tensor, shrunken: bool) -> Tensor:
    """Return the log-likelihood ratios `(P,)` of `victim (P, D)`, 0 for points without both kinds of shadows."""
    gaussians, both = fitted(features, member)
    scores = (gaussians.shrunken() if shrunken else gaussians).ratio(victim)
    return torch.where(both, scores, 0.0)
