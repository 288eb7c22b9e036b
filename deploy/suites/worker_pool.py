"""Worker processes on Ray: one job per core, of this machine or of a cluster."""

from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from types import TracebackType
from typing import Any, Protocol, Self

import ray

from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.engines.ray_start import check_ray, gpus_each, start_ray, stop_ray
from metaleak.deploy.errors import one_line
from metaleak.deploy.suites.jobs import Job, Outcome, do

_TRIES_AGAIN = 1
"""How often a job is tried again after its process died; one that was killed for its memory would die again."""

_GO_ON = "the same command goes on from here"


class Workers(Protocol):
    """Executes jobs, at most `count` at a time."""

    @property
    def count(self) -> int:
        """How many jobs can be done at a time."""
        ...

    def begin(self, job: Job) -> None:
        """Give a job to a worker that has none; there must be one."""
        ...

    def ended(self, seconds: float) -> Sequence[tuple[Job, Outcome]]:
        """Return the jobs that have ended; wait at most `seconds` for the first."""
        ...


class RayWorkers:
    """`Workers` on Ray, which runs inside the block; each computes by itself, in one thread.

    The directories of the jobs must be on a file system that all machines of a cluster share.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._begun: dict[Any, Job] = {}

    def __enter__(self) -> Self:
        # Ray reports a dead worker on the standard output, which is reserved for the document of `--json`; the
        # outcome reports it, too.
        with ExitStack() as up:
            up.enter_context(redirect_stdout(StringIO()))
            # This ends busy workers, too: the files that they have written are complete, and their jobs can be
            # resumed.
            up.callback(stop_ray)
            self.count = start_ray(self._settings)
            share = gpus_each(self._settings, self.count)
            self._remote: Any = ray.remote(num_cpus=1, num_gpus=share, max_retries=_TRIES_AGAIN)(do)
            self._up = up.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._up.close()

    def begin(self, job: Job) -> None:
        """Give a job to a worker."""
        self._begun[self._remote.remote(job)] = job

    def ended(self, seconds: float) -> Sequence[tuple[Job, Outcome]]:
        """Return the jobs that have ended; raises `RuntimeError` in one line when Ray itself has died."""
        check_ray(_GO_ON)
        ready, _ = ray.wait(list(self._begun), timeout=seconds)
        # Errors of jobs whose Ray has died are not their own.
        outcomes = [(reference, _outcome(reference)) for reference in ready]
        check_ray(_GO_ON)
        return [(self._begun.pop(reference), outcome) for reference, outcome in outcomes]


def _outcome(reference: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except Exception as error:  # noqa: BLE001 (whatever ends a process; what a job raises is in its outcome)
        return Outcome(f"the worker process died: {one_line(error)}", 0.0)
    return outcome
