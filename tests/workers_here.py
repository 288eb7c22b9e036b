"""Workers without processes: each job is done when it is begun."""

from collections.abc import Sequence
from typing import Self

from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.suites.jobs import Job, Outcome, do


class WorkersHere:
    """Does jobs in this process, two "at a time", and keeps what it was given in `begun`."""

    count = 2

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self.begun: list[Job] = []
        self._ended: list[tuple[Job, Outcome]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self, job: Job) -> None:
        assert len(self._ended) < self.count, "more jobs than workers"
        self.begun.append(job)
        self._ended.append((job, do(job)))

    def ended(self, seconds: float) -> Sequence[tuple[Job, Outcome]]:
        # One at a time and the last first: nobody may count on an order.
        return [self._ended.pop()] if self._ended else []
