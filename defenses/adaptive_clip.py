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

    Source: Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", algorithm 1. b is the part
    of the norms that are at most C, with Gaussian noise: one more Gaussian mechanism beside each mean, over the same
    data, in which one unit is one of n in the count. Its noise multiplier is `count_noise` times that of both
    together, z; so the mean's is z / sqrt(1 - 1 / `count_noise`^2), since the squares of 1 / z add up (their theorem
    1; Dong, Roth and Su 2022, corollary 3.3). What is accounted for is z, as without adaptation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    rate: Annotated[float, Field(gt=0, le=2)] = 0.2
    count_noise: Annotated[float, Field(gt=1, le=1e6)] = 4.0

    @property
    def mean_factor(self) -> float:
        """Return by how much the noise of the mean is more than without adaptation."""
        return 1 / math.sqrt(1 - self.count_noise**-2)

    def fall(self, part: float) -> float:
        """Return by how much the logarithm of the norm should fall where this `part` of the norms is at most C."""
        return self.rate * (part - self.quantile)


@runtime_checkable
class AdaptsClip(Protocol):
    """A defense whose clipping norm can follow what the server sends."""

    @property
    def adapt(self) -> AdaptiveClip | None:
        """How, or `None` where the norm stays as it is."""
        ...

    @property
    def sent_clip(self) -> float:
        """The clipping norm of what is sent."""
        ...

    def with_sent_clip(self, norm: float) -> Self:
        """Return the defense with another."""
        ...


def adapting(defenses: Iterable[object]) -> AdaptsClip | None:
    """Return that of `defenses` whose clipping norm adapts, `None` where none does."""
    for defense in defenses:
        if isinstance(defense, AdaptsClip) and defense.adapt is not None:
            return defense
    return None
