"""Simulated faults: a learner drops out, fails, or is slow."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from metaleak.clients.randomness import keyed_uniforms

Probability = Annotated[float, Field(ge=0, le=1)]
Missing = Literal["dropped", "late", "failed", "refused"]


@dataclass(frozen=True)
class Absence:
    """Why a learner is missing in a reply: the `kind`, and for a failure or a refusal the `reason` in one line."""

    kind: Missing
    reason: str = ""


class Faults(BaseModel):
    """The probabilities of simulated faults, drawn for each learner and round independently.

    `dropout`: the probability that a learner does not answer. `failure`: that it fails with an error. `straggler`:
    that it is delayed by an exponentially distributed time with a mean of `delay` seconds; a learner that is delayed
    by more than the `deadline`, in seconds (`null`: no deadline), is late, and its answer does not count. The delay
    is simulated: the simulation does not wait for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dropout: Probability = 0.0
    failure: Probability = 0.0
    straggler: Probability = 0.0
    delay: Annotated[float, Field(gt=0)] = 60.0
    deadline: Annotated[float, Field(gt=0)] | None = None

    def absence(self, seed: int, round: int, learner: int) -> Absence | None:
        """Return why `learner` does not answer in `round`, or `None` if it does; a function of the arguments only."""
        if self.dropout == self.failure == self.straggler == 0:
            return None
        dropout, failure, straggler, chance = keyed_uniforms(4, seed, round, learner, "faults")
        if dropout < self.dropout:
            return Absence("dropped")
        if failure < self.failure:
            return Absence("failed", "simulated failure")
        if straggler < self.straggler and self.deadline is not None and self._delay(chance) > self.deadline:
            return Absence("late")
        return None

    def _delay(self, chance: float) -> float:
        """Return the exponential law's quantile at `chance` in [0, 1), in seconds."""
        return -self.delay * math.log1p(-chance)


NO_FAULTS = Faults()
