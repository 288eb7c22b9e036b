"""The remaining time of a suite, estimated from finished jobs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from metaleak.deploy.suites.jobs import Job


@dataclass
class Forecast:
    """Estimates the duration of jobs from those that have ended."""

    _taken: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    def learn(self, job: Job, seconds: float) -> None:
        """Note a job that took `seconds`."""
        for length in range(len(job.kind) + 1):
            self._taken.setdefault(job.kind[:length], []).append(seconds)

    def seconds_left(
        self, waiting: Iterable[Job], running: Iterable[tuple[Job, float]], workers: int
    ) -> float | None:
        """Return about how many seconds `workers` need for the jobs that are `waiting` and `running`.

        `running` jobs come with the seconds that they have taken so far. Returns `None` while no job has ended. A job
        is expected to take the mean time of the most similar finished ones; if it has taken longer, to end now.
        """
        if not self._taken:
            return None
        left = [self._expected(job) for job in waiting]
        left += [max(0.0, self._expected(job) - so_far) for job, so_far in running]
        return max(sum(left) / workers, max(left, default=0.0))

    def _expected(self, job: Job) -> float:
        alike = (job.kind[:length] for length in range(len(job.kind), -1, -1))
        return fmean(next(self._taken[kind] for kind in alike if kind in self._taken))
