"""Threat models: what an adversary may know beyond the messages that the server sees, a set of capabilities."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_serializer

Capability = Literal[
    "labels", "classes", "lengths", "other set", "own examples", "defenses", "rest of the set", "both candidates"
]
"""What an adversary may know beyond the messages that the server sees.

`labels`: every image's position in its task is known. `classes`: which class stands at each position. `lengths`:
how many tokens each sentence has. `other set`: the images of the set that is not asked about. `own examples`:
labeled images of the same kind that no learner holds. `defenses`: the learners' defenses, with all settings. `rest
of the set`: of the set that is asked about, all images but the one whose membership is asked. `both candidates`:
the two images of which one is in its place. With all of these it is the adversary of the definition of differential
privacy, who knows everything but which of two neighboring data sets was used.
"""


class ThreatModel(BaseModel):
    """The capabilities that the adversary has.

    An attack that requires a capability that is not in `knows` is not applicable. `null` allows every capability;
    each attack is then given just those that it requires.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    knows: frozenset[Capability] | None = None

    @field_serializer("knows")
    def _sorted(self, knows: frozenset[Capability] | None) -> list[Capability] | None:
        # A set has no order, and what is written must be the same every time.
        return None if knows is None else sorted(knows)

    def lacks(self, required: Iterable[Capability]) -> tuple[Capability, ...]:
        """Return those of the `required` capabilities that this adversary does not have, sorted."""
        return tuple(sorted(set(required) - self.knows)) if self.knows is not None else ()
