"""LiRA on the pretrained model itself: what the start gives away before it is finetuned."""

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from metaleak.attacks.pretraining.evidence import ShadowAnswers, log_odds
from metaleak.attacks.pretraining.gaussian_ratio import gaussian_ratio
from metaleak.attacks.work import Work


class WhiteBoxLiRA(BaseModel):
    """Likelihood ratio of the pretrained model's log odds of the true label (Carlini et al. 2022, section V).

    The ceiling that Abascal et al. 2024 compare with: it is given the probability of each point's own label, `K = 1`,
    by the model *before* it was finetuned. One variance for all points.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def sees_start(self) -> bool:
        """It is given answers of the start, not of the finetuned model."""
        return True

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return the log likelihood ratio `(P,)`."""
        return gaussian_ratio(
            log_odds(shadows.probabilities).mean(dim=2), shadows.member, log_odds(victim).mean(dim=1), shrunken=False
        )
