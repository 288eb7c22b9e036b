"""Threat models: sets of capabilities, the adversary's knowledge beyond the messages that the server sees."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_serializer

Capability = Literal[
    "labels", "classes", "lengths", "other set", "own examples", "defenses", "rest of the set", "both candidates"
]
"""The adversary's possible knowledge beyond the messages that the server sees.

`labels`: the label position of every image in its task. `classes`: the class at each position. `lengths`: the number
of tokens in each sentence. `other set`: the images of the set that is not attacked. `own examples`: labeled images of
the same distribution that no learner holds. `defenses`: the learners' defenses, with all settings. `rest of the set`:
all images of the attacked set except the target. `both candidates`: the two images of which one is in the target's
place. With all of these it is the adversary of the definition of differential privacy, who knows everything except
which of two neighboring data sets was used.
"""


class ThreatModel(BaseModel):
    """The capabilities that the adversary has.

    An attack that requires a capability outside of `knows` is not applicable. `null` allows every capability; each
    attack is given only those that it requires.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    knows: frozenset[Capability] | None = None

    @field_serializer("knows")
    def _sorted(self, knows: frozenset[Capability] | None) -> list[Capability] | None:
        # A set has no order, and the written file must be the same every time.
        return None if knows is None else sorted(knows)

    def lacks(self, required: Iterable[Capability]) -> tuple[Capability, ...]:
        """Return the `required` capabilities that this adversary does not have, sorted."""
        return tuple(sorted(set(required) - self.knows)) if self.knows is not None else ()
