"""LiRA on the pretrained model itself: what it gives away before it is finetuned."""

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from metaleak.attacks.pretraining.evidence import ShadowAnswers, log_odds
from metaleak.attacks.pretraining.gaussian_ratio import gaussian_ratio
from metaleak.attacks.work import Work


class WhiteBoxLiRA(BaseModel):
    """Likelihood ratio of the pretrained model's log odds of the true label (Carlini et al. 2022, section V).

    The ceiling that Abascal et al. 2024 compare with: it is given the probability of each point's true label
    (`K = 1`) by the model *before* it was finetuned. All points share one variance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def sees_pretrained(self) -> bool:
        """Whether it is given answers of the pretrained model in place of those of the finetuned one."""
        return True

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return the log-likelihood ratios `(P,)`, 0 for points without both kinds of shadows."""
        return gaussian_ratio(
            log_odds(shadows.probabilities).mean(dim=2), shadows.member, log_odds(victim).mean(dim=1), shrunken=False
        )
