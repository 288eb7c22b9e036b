"""An audit of a defense: which epsilon does an attack by the worst-case adversary prove, of that accounted for?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from metaleak.attacks.evaluation.empirical_epsilon import epsilon_lower_bound, gaussian_epsilon_of_guesses
from metaleak.clients.randomness import keyed_uniforms
from metaleak.deploy.audits.canaries import Canary
from metaleak.deploy.results.schema import PrivacyViolation

_CALIBRATION = 0.1
"""The fraction of the trials that the test is fitted to; it is measured on the others."""

_ENOUGH = 2000
"""Trials that suffice for the fit, for each number that a trial gives."""


class Trials(BaseModel):
    """How often the mechanism is run: `trials`, each with one of the two inputs by a fair coin.

    Each of the two bounds holds with probability `confidence`. So an audit of a correct defense whose accounting is
    tight proves slightly more than is promised with probability up to twice 1 - `confidence`: take more than 0.95
    where many defenses are audited.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: Annotated[int, Field(ge=100, le=10_000_000)] = 10_000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        accounted: The epsilon that the defense promises at `delta` for all `rounds` together.
        lower_bound: The epsilon that the trials prove of a mechanism known to be Gaussian, from the fraction of right
            guesses (`gaussian_epsilon_of_guesses`).
        any_mechanism: The epsilon that they prove of any mechanism, from single points of the ROC curve
            (`epsilon_lower_bound`), or for an audit by one run from the number of right guesses
            (`one_run_lower_bound`).
        confidence: The probability with which each of the two bounds holds.
        delta: The delta of all three.
        rounds: The rounds in which the learner takes part.
        trials: The number of guesses; for an audit by one run that of canaries.

    Example:
        >>> found = Audit(8.0, 7.8, 3.1, confidence=0.95, delta=1e-5, rounds=1, trials=9000)
        >>> found.exceeded
        False
    """

    accounted: float
    lower_bound: float
    any_mechanism: float
    confidence: float
    delta: float
    rounds: int
    trials: int

    @property
    def exceeded(self) -> bool:
        """Whether one of the two bounds exceeds what is accounted for."""
        return max(self.lower_bound, self.any_mechanism) > self.accounted

    def check(self) -> None:
        """Raise `PrivacyViolation` in one line when a bound exceeds what is accounted for."""
        if self.exceeded:
            raise PrivacyViolation(
                f"the audit proves epsilon {max(self.lower_bound, self.any_mechanism):.4g} at "
                f"{100 * self.confidence:g} % confidence, more than the accounted {self.accounted:.4g}: a bug in the "
                "defense or its accounting"
            )


def audit(canary: Canary, delta: float, trials: Trials, progress: Callable[[int, int], None] | None = None) -> Audit:
    """Return what `trials` prove of the defense behind `canary`.

    In each trial a learner sends its messages of all rounds, computed from the first input or from the second. Their
    score is Fisher's linear discriminant between the two, over the rounds, so that noise that two rounds share is
    found. It is fitted to at most the first tenth of the trials, with the threshold halfway between the means. Then
    each of the other trials is guessed once.
    """
    first = np.array(keyed_uniforms(trials.trials, trials.seed, "audit")) < 0.5
    seen = []
    for learner in range(trials.trials):
        rounds = [canary.sent(learner, bool(first[learner]), round + 1) for round in range(canary.rounds)]
        seen.append(np.concatenate(rounds))
        if progress is not None and learner % 100 == 99:
            progress(learner + 1, trials.trials)
    sent = np.stack(seen)
    calibration = min(max(50, int(_CALIBRATION * trials.trials)), _ENOUGH * sent.shape[1])
    direction, threshold = _discriminant(sent[:calibration], first[:calibration])
    scores, truth = sent[calibration:] @ direction - threshold, first[calibration:]
    right = int(((scores > 0) == truth).sum())
    return Audit(
        accounted=canary.accounted,
        lower_bound=gaussian_epsilon_of_guesses(right, len(truth), delta=delta, confidence=trials.confidence),
        any_mechanism=epsilon_lower_bound(scores, truth, delta=delta, confidence=trials.confidence),
        confidence=trials.confidence,
        delta=delta,
        rounds=canary.rounds,
        trials=len(truth),
    )


def _discriminant(sent: NDArray[np.float64], first: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Return Fisher's direction between the two inputs, and the threshold halfway between their means."""
    means = [sent[first == which].mean(axis=0) for which in (True, False)]
    within = np.concatenate([sent[first] - means[0], sent[~first] - means[1]])
    covariance = within.T @ within / len(within)
    # Where a combination of rounds has no noise at all, the covariance is singular.
    least = 1e-9 * max(float(np.trace(covariance)) / len(covariance), 1e-300)
    direction = np.linalg.solve(covariance + least * np.eye(len(covariance)), means[0] - means[1])
    return direction, float((means[0] + means[1]) @ direction / 2)
