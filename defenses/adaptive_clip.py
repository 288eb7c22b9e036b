"""Adaptive clipping: the clipping norm follows a private quantile of the norms that it clips."""

import math
from collections.abc import Iterable
from typing import Annotated, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

CLIP_NAME = "clipping.log_norm"
"""The entry of what a server sends, `(1,)`, that is the logarithm of the clipping norm.

A learner's reply has under the same name by how much the norm should fall; see `AdaptiveClip.fall`.
"""


class AdaptiveClip(BaseModel):
    """Moves the clipping norm C toward the `quantile` of the norms: C becomes C exp(-`rate` (b - `quantile`)).

    Source: Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", algorithm 1. b is the
    fraction of the norms that are at most C, with Gaussian noise. It is a second Gaussian mechanism over the same
    data as the mean, in which replacing one of n units changes the count by 1. Let z be the noise multiplier of both
    mechanisms together, which is the one that is accounted for, as without adaptation. The count gets `count_noise`
    times z, and the mean z / sqrt(1 - 1 / `count_noise`^2), since the squares of the inverse multipliers add up
    (their theorem 1; Dong, Roth and Su 2022, corollary 3.3).

    Example:
        >>> adapt = AdaptiveClip(quantile=0.5, rate=0.2)
        >>> adapt.fall(0.75)  # Three of four norms are below C: its logarithm falls by this.
        0.05
        >>> round(adapt.mean_factor, 3)
        1.033
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    rate: Annotated[float, Field(gt=0, le=2)] = 0.2
    count_noise: Annotated[float, Field(gt=1, le=1e6)] = 4.0

    @property
    def mean_factor(self) -> float:
        """Return the factor by which the mean's noise is larger than without adaptation."""
        return 1 / math.sqrt(1 - self.count_noise**-2)

    def fall(self, part: float) -> float:
        """Return by how much log C should fall where the fraction `part` of the norms is at most C."""
        return self.rate * (part - self.quantile)


@runtime_checkable
class AdaptsClip(Protocol):
    """A defense whose clipping norm can follow what the server sends."""

    @property
    def adapt(self) -> AdaptiveClip | None:
        """How the clipping norm adapts, or `None` where it stays as it is."""
        ...

    @property
    def sent_clip(self) -> float:
        """The clipping norm of what is sent."""
        ...

    def with_sent_clip(self, norm: float) -> Self:
        """Return the defense with another `sent_clip`."""
        ...


def adapting(defenses: Iterable[object]) -> AdaptsClip | None:
    """Return the first of `defenses` whose clipping norm adapts, or `None` where none does."""
    for defense in defenses:
        if isinstance(defense, AdaptsClip) and defense.adapt is not None:
            return defense
    return None
