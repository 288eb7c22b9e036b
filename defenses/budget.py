"""What defenses with a guarantee have in common: noise by its multiplier, or by what the whole run may cost."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metaleak.defenses.accounting import gaussian_noise_multiplier
from metaleak.defenses.adaptive_clip import AdaptiveClip


class Budget(BaseModel):
    """Either a `noise_multiplier`, or the `epsilon` at `delta` of the `releases` rounds that a learner takes part in.

    With `adapt` the clipping norm of what is sent is that of the first round only; see `AdaptiveClip`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_multiplier: Annotated[float, Field(ge=0, le=1e12)] | None = None
    epsilon: Annotated[float, Field(gt=0, le=10_000)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    releases: Annotated[int, Field(ge=1)] | None = None
    adapt: AdaptiveClip | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError("epsilon: give either epsilon, for the whole run, or noise_multiplier")
        if self.epsilon is None and self.releases is not None:
            raise ValueError("releases: is for epsilon alone, a noise_multiplier does not depend on it")
        return self

    def for_releases(self, releases: int) -> Self:
        """Return the mechanism of a learner that takes part in at most `releases` rounds.

        Raises `ValueError` in one line when `epsilon` was asked for over fewer.
        """
        if self.epsilon is None or (self.releases or 0) >= releases:
            return self
        if self.releases is None:
            return self.model_copy(update={"releases": releases})
        raise ValueError(f"releases: a learner takes part in {releases} rounds, epsilon covers {self.releases}")

    def _multiplier_of(self, means: int) -> float:
        """Return the noise multiplier of each of `means` Gaussian releases a round, about the same data.

        Raises `ValueError` when `epsilon` is given and `releases` not yet.
        """
        if self.epsilon is None:
            return self.noise_multiplier or 0.0
        if self.releases is None:
            raise ValueError("releases: must be given with epsilon: the rounds in which one learner takes part")
        return gaussian_noise_multiplier(self.epsilon, self.releases * means, self.delta)
