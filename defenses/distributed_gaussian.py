"""Distributed noise: each learner adds a share, and the sum that secure aggregation shows has enough of it."""

import math
from typing import Annotated, Self

from pydantic import Field

from metaleak.defenses.accounting import secure_sum_epsilon
from metaleak.defenses.gaussian_mechanism import GaussianMechanism


class DistributedGaussian(GaussianMechanism):
    """Clips a learner's meta-gradient to the L2 norm `clip`, and adds this learner's share of the sum's noise.

    The sum over n learners needs Gaussian noise of the standard deviation `noise_multiplier` times its sensitivity,
    2 `clip`; each adds 1 / sqrt(n) of that, with n = `least_learners`. So in the mean the noise falls with n, and
    with sqrt(n) where each learner protects itself (`GaussianMechanism`).

    Give `noise_multiplier` or the `epsilon` of the whole run. An experiment fills in `releases`, the rounds in which
    one learner takes part, and `least_learners`, how many the server samples in a round.

    Formal guarantee
        The sums of k rounds are (`epsilon_after(k)`, `delta`)-differentially private in all that one learner holds
        (`secure_sum_epsilon` with the sampling probability 1: the server knows who takes part). Against a server that
        sees the sums alone, by secure aggregation, which is required, and against learners that collude with it only
        as long as at least `least_learners` others answer in every round: the noise of a learner that does not
        answer is missing, and that of a learner that reveals its share can be subtracted. It promises nothing about
        one learner's own message.

    Neighbors, and what it rests on, are those of the Gaussian mechanism.

    Example:
        >>> mechanism = DistributedGaussian(clip=1.0, epsilon=8, releases=40, least_learners=100)
        >>> round(mechanism.standard_deviation, 3)  # Of one learner's share: a tenth of GaussianMechanism's.
        0.759
        >>> round(mechanism.epsilon_after(40), 3)
        8.0
    """

    least_learners: Annotated[int, Field(ge=1)] | None = None

    @property
    def share(self) -> float:
        """The fraction of the noise's standard deviation that one learner adds.

        Raises `ValueError` without `least_learners`.
        """
        return share_of(self.least_learners)

    def for_learners(self, learners: int) -> Self:
        """Return the mechanism of one of at least `learners`; raises `ValueError` when it was set up for more."""
        return self.model_copy(update={"least_learners": least_of(self.least_learners, learners)})

    def epsilon_after(self, releases: int) -> float:
        """Return the epsilon at `delta` of the sums of `releases` rounds in which one learner takes part."""
        return secure_sum_epsilon(self.multiplier, 1.0, releases, self.delta)


def share_of(least_learners: int | None) -> float:
    """Return 1 / sqrt(`least_learners`); raises `ValueError` in one line where they are not given yet."""
    if least_learners is None:
        raise ValueError("least_learners: must be given: how many learners answer in every round, at least")
    return 1 / math.sqrt(least_learners)


def least_of(asked: int | None, learners: int) -> int:
    """Return how many learners share the noise where `learners` answer: all, or the fewer that are `asked` for.

    Raises `ValueError` in one line when more are asked for.
    """
    if asked is not None and asked > learners:
        raise ValueError(f"least_learners: {learners} answer in a round, the noise is shared by more, got {asked}")
    return learners if asked is None else asked
