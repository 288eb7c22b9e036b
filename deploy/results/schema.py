"""The pieces of an attack's result file that its writer and its readers share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0)]


class PrivacyViolation(ValueError):
    """An attack that did better than a guarantee allows: a bug in the defense, its accounting or the evaluation."""


class Privacy(BaseModel):
    """The epsilon at `delta` that is `accounted` for, and the lower bounds that an attack's scores put on it.

    `accounted` is `None` without a guarantee, or with one that is infinite. `lower_bound` exceeds the true epsilon
    with a chance of 1 - `confidence` at most, whatever the mechanism; so does `gaussian_lower_bound`, the sharper
    one, which is there only where what is accounted for promises to be Gaussian (see `Modeled`). `one_run` (Steinke
    et al. 2023) rests on assumptions that only about hold, see `one_run_lower_bound`, and decides nothing.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    accounted: Epsilon | None
    delta: Annotated[float, Field(ge=0, lt=1)]
    lower_bound: Epsilon
    confidence: Annotated[float, Field(gt=0, lt=1)]
    gaussian_lower_bound: Epsilon | None = None
    one_run: Epsilon | None = None

    @property
    def proven(self) -> float:
        """The greater of the lower bounds that hold."""
        return max(self.lower_bound, self.gaussian_lower_bound or 0.0)

    @property
    def violated(self) -> bool:
        """Whether a lower bound exceeds what was accounted for."""
        return self.accounted is not None and self.proven > self.accounted

    def check(self) -> None:
        """Raise `PrivacyViolation` in one line when a lower bound exceeds what was accounted for."""
        if self.violated:
            raise PrivacyViolation(
                f"the empirical epsilon {self.proven:.4g} ({100 * self.confidence:g} % lower bound) exceeds the "
                f"accounted {self.accounted:.4g}: a bug in the defense, its accounting or the evaluation"
            )


class Cost(BaseModel):
    """The bytes that carry one learner's defended meta-gradient, and those of all entries in float32."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    bytes_per_learner: Bytes
    dense_bytes: Bytes
