"""What the attacks on text have in common."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from metaleak.attacks.threat_model import Capability
from metaleak.clients.models import Model, TextModel


class TextAttack(BaseModel):
    """An attack on the gradient of some matrices of a transformer: `matrix`, or by default the best of those shared.

    `asks` says with which of a learner's two sets its answer is compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    takes_parts: ClassVar[bool] = True

    asks: Literal["query", "support"] = "query"
    matrix: str | None = None

    @property
    def requires(self) -> frozenset[Capability]:
        """Nothing beside what is seen: the model is public, and how many sentences there are is the task's shape."""
        return frozenset()

    def applies_to(self, model: Model) -> bool:
        """Return whether the model takes tokens and shows what its layers take."""
        return isinstance(model, TextModel)
