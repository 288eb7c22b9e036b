"""An audit of a defense: how much of its accounted epsilon do the answers of the worst-case adversary prove?"""

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
_ENOUGH = 2000
"""The part of the trials from which the test is made, and how many suffice for each number that a trial shows.

The others are what the test is measured on.
"""


class Trials(BaseModel):
    """How many learners are asked: `trials`, each with one of the two inputs by a fair coin.

    The bounds hold with `confidence` each. A defense whose bound is tight passes with that chance only, and exceeds
    its promise by a hair otherwise: take more than 0.95 where many are audited.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: Annotated[int, Field(ge=100, le=10_000_000)] = 10_000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


@dataclass(frozen=True)
class Audit:
    """What was found.

    `accounted` is the epsilon that the defense promises at `delta`, `lower_bound` what the trials prove of a
    mechanism known to be Gaussian (`gaussian_epsilon_of_guesses`), `any_mechanism` what they prove of whatever it is
    (`epsilon_lower_bound`), by single operating points.
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
        """Whether a bound exceeds what is accounted for."""
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

    Each learner sends in all rounds, of the first input or of the second. The score is the linear combination of the
    rounds that tells the two apart best, Fisher's, by the first tenth of the trials at most; so noise that two rounds
    share is found. The threshold is halfway between the means. The other trials are guessed once, with this test.
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
    # A combination of rounds that has no noise at all would have none to divide by.
    least = 1e-9 * max(float(np.trace(covariance)) / len(covariance), 1e-300)
    direction = np.linalg.solve(covariance + least * np.eye(len(covariance)), means[0] - means[1])
    return direction, float((means[0] + means[1]) @ direction / 2)
