"""Personal models that learners publish, and the images of other learners behind the initialization they share."""

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
    """An attack whose view is `Query`: personal models of learners, which it can ask and not look into.

    It takes R released models and as many of each of S federations that the adversary simulates, all asked about the
    same P points. It needs neither a record nor gradients.
    """

    @property
    def releases(self) -> int:
        """How many learners publish their personal models."""
        ...

    @property
    def shadows(self) -> int:
        """How many federations the adversary simulates."""
        ...

    @property
    def requires(self) -> frozenset[Capability]:
        """The capabilities that the adversary must have beside what it can ask."""
        ...

    def scores(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return a score `(P,)`, higher for "member"; a point's R queries are those of the R released models."""
        ...


class PersonalModels(BaseModel):
    """The Gaussian ratio of what personal models answer: were these images in any learner's sets of the training?

    `releases` learners adapt the trained initialization to their own support sets and let others ask what results.
    The adversary deals images to `shadows` federations of the same kind, trains them, and lets learners of the same
    classes adapt; so it has images of its own and knows which class stands at each output. `access` is what can be
    seen of an answer, `clip` as in `GaussianRatio`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    releases: Annotated[int, Field(ge=1, le=1000)] = 5
    shadows: Annotated[int, Field(ge=3, le=1000)] = 16
    access: Access = "all"
    clip: Annotated[float, Field(gt=0)] | None = 1.0

    @property
    def requires(self) -> frozenset[Capability]:
        """Images of its own, and the classes of the released models."""
        return frozenset({"own examples", "classes"})

    @property
    def takes_parts(self) -> bool:
        """It needs no gradients at all."""
        return True

    def applies_to(self, model: Model) -> bool:
        """Any model can be asked."""
        return True

    def scores(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return the log likelihood ratio `(P,)` of all released models together."""
        seen = ShadowAnswers(restricted(shadows.probabilities, self.access), shadows.member)
        return GaussianRatio(clip=self.clip, queries="joint")(seen, restricted(victim, self.access), work)


def answers_of_all(queries: Mapping[Any, Query], inputs: Tensor, ways: int) -> tuple[Tensor, str]:
    """Return what R released models answer about P inputs, `(P, R, ways)`, and a line on what has no answer."""
    asked = [ask(query, inputs, ways) for query in queries.values()]
    complaint = "; ".join(one.complaint for one in asked if one.complaint)
    return torch.stack([one.probabilities for one in asked], dim=1), complaint
