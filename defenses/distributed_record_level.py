"""Record-level privacy of a secure sum: the last mean's noise is shared among the learners."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field

from metaleak.defenses.defense import Reading
from metaleak.defenses.distributed_gaussian import least_of, share_of
from metaleak.defenses.record_level import SENT, RecordLevel


class DistributedRecordLevel(RecordLevel):
    """Record-level privacy against a server that sees sums over learners alone; it requires secure aggregation.

    The noise of the support set's means is that of `RecordLevel`: the adapted parameters have to be private before
    the query set's gradients are taken at them. The query set's mean is sent, and the sum over n = `least_learners`
    needs the noise of one of them: each adds 1 / sqrt(n) of it. So the noise in the mean over learners falls with n.

    Formal guarantee
        The sums of k rounds are (`epsilon_after(k)`, `delta`)-differentially private in each example of each learner,
        as long as at least `least_learners` answer in every round that do not tell the server their share of the
        noise. Of a query example: whatever the adapted parameters and the other learners' sums are, the sum is a
        Gaussian mechanism in it. Of a support example: as for `RecordLevel`. Only what is sent as it is can have less
        noise, so a rule that computes with what it sends in several steps (Reptile, FedAvg in batches) is refused.

    Example:
        >>> readings = {"support": 1, "query": 1}
        >>> mechanism = DistributedRecordLevel(epsilon=8, releases=40, readings=readings, least_learners=100)
        >>> round(mechanism.standard_deviation("query", count=75), 4)  # One learner's share.
        0.0101
        >>> round(mechanism.standard_deviation("support", count=25), 4)  # Whole, since it is not averaged.
        0.3037
    """

    isotropic_noise: ClassVar[bool] = True

    least_learners: Annotated[int, Field(ge=1)] | None = None

    def for_readings(self, readings: Mapping[Reading, int]) -> Self:
        """Return the mechanism of a rule with such `readings`.

        Raises `ValueError` in one line for a rule that computes with the mean that it sends.
        """
        sent = readings.get("all", 0) + readings.get("query", 0)
        if sent > 1 or "batch" in readings or (readings.get("curvature", 0) and sent):
            raise ValueError(
                f"name: only a mean that is sent as it is can share its noise, and the rule takes {dict(readings)} "
                "in one round; fomaml and fedsgd do"
            )
        return super().for_readings(readings)

    def for_learners(self, learners: int) -> Self:
        """Return the mechanism of one of at least `learners`; raises `ValueError` when it was set up for more."""
        return self.model_copy(update={"least_learners": least_of(self.least_learners, learners)})

    def share(self, reading: Reading) -> float:
        """Return the fraction of the noise's standard deviation that one learner adds.

        Raises `ValueError` without `least_learners`.
        """
        of_sums = share_of(self.least_learners)
        return of_sums if reading in SENT else 1.0
