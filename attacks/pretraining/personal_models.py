"""Published personal models, and the training images of other learners behind their common initialization."""

from collections.abc import Mapping
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.attacks.pretraining.evidence import ShadowAnswers
from metaleak.attacks.pretraining.gaussian_ratio import GaussianRatio
from metaleak.attacks.pretraining.query import Access, Query, ask, restricted
from metaleak.attacks.threat_model import Capability
from metaleak.attacks.work import Work
from metaleak.clients.models import Model


@runtime_checkable
class AsksReleasedModels(Protocol):
    """An attack on the learners' released personal models, by queries alone; see `Query`.

    It uses the answers of R released models of the federation under attack, and of R models of each of S federations
    that the adversary simulates, about the same P points. It needs neither a record nor gradients.
    """

    @property
    def releases(self) -> int:
        """R, the number of learners that publish their personal models."""
        ...

    @property
    def shadows(self) -> int:
        """S, the number of federations that the adversary simulates."""
        ...

    @property
    def requires(self) -> frozenset[Capability]:
        """The capabilities that the adversary must have beyond query access."""
        ...

    def scores(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return a score for each point, `(P,)`, higher for "member".

        `shadows` and `victim (P, R, K)` have one answer per released model for each point.
        """
        ...


class PersonalModels(BaseModel):
    """`GaussianRatio` on the answers of personal models: was an image in any learner's sets during training?

    `releases` learners adapt the trained initialization to their own support sets and answer queries to the result.
    The adversary trains `shadows` federations of the same kind on its own images and has learners with the same
    classes adapt, so it must know which class stands at each output. `access` is the visible part of an answer;
    `clip` as in `GaussianRatio`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    releases: Annotated[int, Field(ge=1, le=1000)] = 5
    shadows: Annotated[int, Field(ge=3, le=1000)] = 16
    access: Access = "all"
    clip: Annotated[float, Field(gt=0)] | None = 1.0

    @property
    def requires(self) -> frozenset[Capability]:
        """Images of the adversary's own, and the class at each output of the released models."""
        return frozenset({"own examples", "classes"})

    @property
    def takes_parts(self) -> bool:
        """Whether it applies where learners share only some parameters; it needs no gradients at all."""
        return True

    def applies_to(self, model: Model) -> bool:
        """Return `True`: any model can be queried."""
        return True

    def scores(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return the log-likelihood ratios of all released models' answers together, `(P,)`."""
        seen = ShadowAnswers(restricted(shadows.probabilities, self.access), shadows.member)
        return GaussianRatio(clip=self.clip, queries="joint")(seen, restricted(victim, self.access), work)


def answers_of_all(queries: Mapping[Any, Query], inputs: Tensor, ways: int) -> tuple[Tensor, str]:
    """Return the answers of R released models to P inputs, `(P, R, ways)`, and one line on unanswered queries."""
    asked = [ask(query, inputs, ways) for query in queries.values()]
    complaint = "; ".join(one.complaint for one in asked if one.complaint)
    return torch.stack([one.probabilities for one in asked], dim=1), complaint
