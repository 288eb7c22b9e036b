"""Secure aggregation as an ideal functionality."""

from typing import Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from metaleak.defenses.randomness import RandomSource


class SecureAggregation(BaseModel):
    """Lets the server see the mean of a round over all learners that answered, and no learner's own message.

    An *ideal functionality*: a trusted party that adds, as in the definition of security that a protocol such as
    Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning") is proved against.
    There is no cryptography, so neither its cost nor its failures are simulated: masks, key exchange, colluding
    learners, the rounding of a finite field, a minimum number of learners. In a round in which one learner answered,
    the mean is that learner's gradient. Who answered is known to the server, as in the protocol.

    It acts between learners and server: a learner's tensors pass it unchanged, and the simulation gives the record,
    which is what the adversary sees, the mean and nothing else.

    Example:
        In an experiment, alone or with a defense whose learners share the noise of the sum:

        >>> SecureAggregation().place
        'aggregate'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Literal["aggregate"] = "aggregate"

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return `tensors` as they are."""
        return tensors
