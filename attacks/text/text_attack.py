"""The base class of the attacks on text."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from metaleak.attacks.threat_model import Capability
from metaleak.clients.models import Model, TextModel


class TextAttack(BaseModel):
    """An attack on the gradients of a transformer's weight matrices.

    `matrix` is the name of the matrix that is used, by default the most suitable of those shared. `asks` chooses
    which of a learner's two sets the answer is compared with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    takes_parts: ClassVar[bool] = True

    asks: Literal["query", "support"] = "query"
    matrix: str | None = None

    @property
    def requires(self) -> frozenset[Capability]:
        """The empty set: the model is public, and the number of sentences follows from the task's shape."""
        return frozenset()

    def applies_to(self, model: Model) -> bool:
        """Return whether the model processes tokens and exposes the inputs of its layers."""
        return isinstance(model, TextModel)
