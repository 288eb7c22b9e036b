"""LiRA from a finetuned model's confidence in its most likely class, as in the official code of the TMI paper."""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from metaleak.attacks.pretraining.evidence import ShadowAnswers, log_odds
from metaleak.attacks.pretraining.gaussian_ratio import fitted
from metaleak.attacks.work import Work


class AdaptedLiRA(BaseModel):
    """Likelihood ratio of two Gaussians per point, over the log odds of the class that the victim finds most likely.

    The baseline of Abascal et al. 2024, section 5.1 (LiRA: Carlini et al. 2022). The Gaussians have one dimension per
    query. Their means are estimated for each point, and with `own_covariance` so are their covariances, as in the
    official code, with a small ridge; otherwise all points share one covariance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    own_covariance: bool = True

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return the log-likelihood ratios `(P,)`, 0 for points without both kinds of shadows."""
        likeliest = victim.mean(dim=1).argmax(dim=-1)
        place = likeliest[:, None, None]

        def confidence(probabilities: Tensor) -> Tensor:
            chosen = place.expand(*probabilities.shape[:-1], 1)
            return log_odds(probabilities.gather(-1, chosen))[..., 0]

        asked, seen = confidence(shadows.probabilities), confidence(victim)
        gaussians, both = fitted(asked, shadows.member)
        if not self.own_covariance:
            return torch.where(both, gaussians.ratio(seen), 0.0)
        inside = _log_density(asked, shadows.member, gaussians.inside, seen)
        outside = _log_density(asked, ~shadows.member, gaussians.outside, seen)
        return torch.where(both, inside - outside, 0.0)


def _log_density(asked: Tensor, chosen: Tensor, mean: Tensor, seen: Tensor) -> Tensor:
    """Return the log density `(P,)` of `seen (P, A)` under each point's Gaussian, fitted to the `chosen` shadows."""
    weight = chosen.to(asked.dtype)[..., None]
    off = (asked - mean) * weight
    count = weight.sum(dim=0)[..., None]
    covariance = torch.einsum("spa,spb->pab", off, off) / (count - 1).clamp(min=1)
    # The covariance of a point with fewer shadows than queries is singular.
    ridge = 1e-6 + 0.05 * covariance.diagonal(dim1=1, dim2=2).mean(dim=1)
    covariance = covariance + ridge[:, None, None] * torch.eye(asked.shape[-1], dtype=asked.dtype)
    root = torch.linalg.cholesky(covariance)
    distance = torch.linalg.solve_triangular(root, (seen - mean)[..., None], upper=False).square().sum(dim=(1, 2))
    density: Tensor = -distance / 2 - root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return density
