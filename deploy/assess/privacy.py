"""What a defense promises beside what an attack proves, and what a learner's message costs."""

import math
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from metaleak.attacks.evaluation.empirical_epsilon import (
    epsilon_lower_bound,
    gaussian_epsilon_lower_bound,
    one_run_lower_bound,
)
from metaleak.clients.federation import Federation
from metaleak.defenses import Accounted, Defense, bytes_sent, noise_of
from metaleak.defenses.cost import dense_bytes
from metaleak.deploy.assess.truth import Truth

CONFIDENCE = 0.95
_DELTA = 1e-5

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


def measured_privacy(
    federation: Federation, releases: int, truth: Truth, scores: torch.Tensor, together: bool
) -> Privacy:
    """Return what the federation's defenses promise after `releases`, beside what `scores (T,)` prove.

    The best of several guarantees counts: what stands before or after a mechanism takes nothing from it. Targets of
    one learner share its noise, and where the server saw learners `together`, in a mean, all targets share all noise:
    then nothing but `one_run` can be told, and the lower bound is 0.
    """
    promised = [
        (epsilon, defense.delta, _gaussian(defense))
        for defense in federation.defenses
        if isinstance(defense, Accounted) and math.isfinite(epsilon := defense.epsilon_after(releases))
    ]
    accounted, delta, gaussian = min(promised, default=(None, _DELTA, False))
    shared = torch.zeros_like(truth.learner) if together else truth.learner
    member = truth.member.numpy()
    bounds = [
        bound(scores.numpy(), member, delta=delta, confidence=CONFIDENCE, groups=shared.numpy())
        for bound in (epsilon_lower_bound, *((gaussian_epsilon_lower_bound,) if gaussian else ()))
    ]
    return Privacy(
        accounted=accounted,
        delta=delta,
        lower_bound=bounds[0],
        gaussian_lower_bound=bounds[1] if gaussian else None,
        confidence=CONFIDENCE,
        one_run=one_run_lower_bound(scores.numpy(), member, delta=delta, confidence=CONFIDENCE),
    )


def _gaussian(defense: Defense) -> bool:
    """Return whether a defense with a guarantee promises that it is the Gaussian mechanism's; see `Modeled`."""
    noise = noise_of(defense)
    return (
        defense.place == "shared"
        and noise is not None
        and noise.law == "gaussian"
        and noise.deviation > 0
        and not noise.relative
    )


def message_cost(federation: Federation) -> Cost:
    """Return what one learner's message costs with the federation's defenses, without Flower's envelope."""
    shapes = {name: tuple(value.shape) for name, value in federation.initial_parameters().items()}
    return Cost(bytes_per_learner=bytes_sent(federation.defenses, shapes), dense_bytes=dense_bytes(shapes))
