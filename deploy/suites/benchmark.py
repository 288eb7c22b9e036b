"""Running the missing cells of a suite, several at a time and none twice."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import yaml

from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.engines.interruption import interruptible
from metaleak.deploy.errors import Interrupted
from metaleak.deploy.results.json_file import write_json
from metaleak.deploy.results.reading import SUITE_FILE
from metaleak.deploy.results.schema import Cell, SuiteState
from metaleak.deploy.simulate.run_directory import held, write_text
from metaleak.deploy.suites.forecast import Forecast
from metaleak.deploy.suites.jobs import Job, Outcome
from metaleak.deploy.suites.plan import Key, Plan, plan
from metaleak.deploy.suites.worker_pool import RayWorkers, Workers
from metaleak.server.record.whole_file import remove_parts

_LOOK_SECONDS = 0.5
WRITTEN = ("suite.json", "suite.yaml", "leaderboard.parquet", "leaderboard.json")


@dataclass(frozen=True)
class Standing:
    """The progress of a suite: jobs `done` of `total`, those `running`, and the estimated seconds left."""

    done: int
    total: int
    running: tuple[str, ...]
    seconds_left: float | None


Watch = Callable[[Standing], None]


def benchmark(
    suite: Suite,
    out: Path,
    watch: Watch | None = None,
    changes: Sequence[str] = (),
    workers: Callable[[EngineSettings], AbstractContextManager[Workers]] = RayWorkers,
) -> list[Cell]:
    """Run every cell of `suite` whose result is missing in `out`, and return all cells, including failed ones.

    Simulations and attacks are jobs of `workers`; an attack begins when its simulation is done. `suite.json` lists
    all cells from the start and is written after each job. A cell that fails is returned with its error and tried
    again by the next call. When nothing is missing, no worker is started.

    Args:
        suite: The suite to run.
        out: The suite's directory.
        watch: Called with the progress, twice a second.
        changes: Changes of the base experiment, such as `server.rounds=50`.
        workers: Opens the workers; by default worker processes on Ray.

    Raises:
        Interrupted: On Ctrl-C or SIGTERM. Finished jobs are kept, and the next call continues with the others.
        ValueError: While another process works on the suite in `out`.
    """
    experiments = suite.experiments(changes)
    out.mkdir(parents=True, exist_ok=True)
    with held(out, "this suite"):
        remove_parts(out, WRITTEN)
        planned = plan(experiments, out)
        write_text(out / "suite.yaml", yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False))
        going = _Going(planned, lambda cells: _write(out, suite, cells))
        if going.left:
            stopped = threading.Event()
            with interruptible(stopped.set), workers(experiments[0].engine) as started:
                _work(going, started, stopped, watch)
    return list(going.cells.values())


def _work(going: "_Going", workers: Workers, stopped: threading.Event, watch: Watch | None) -> None:
    while going.left and not stopped.is_set():
        for job in going.startable(workers.count):
            workers.begin(job)
        if watch is not None:
            watch(going.standing(workers.count))
        for job, outcome in workers.ended(_LOOK_SECONDS):
            going.end(job, outcome)
    if going.left:
        raise Interrupted("interrupted; the same command goes on from here")
    if watch is not None:
        watch(going.standing(workers.count))


class _Going:
    """The state of a plan while its jobs run."""

    def __init__(self, planned: Plan, write: Callable[[Iterable[Cell]], None]) -> None:
        self.cells = dict(planned.cells)
        self._keys = {(job.run, job.result): key for key, job in planned.jobs.items()}
        self._total = len(planned.jobs)
        self._waiting = planned.waiting()
        self._running: dict[Key, tuple[Job, float]] = {}
        self._forecast = Forecast()
        self._write = write
        for key, job in planned.jobs.items():
            if key not in self._waiting:
                # Results that break a promised epsilon count as failures in every call.
                self._fill(key, job.proven_wrong)
        write(self.cells.values())

    @property
    def left(self) -> int:
        return len(self._waiting) + len(self._running)

    def startable(self, workers: int) -> list[Job]:
        """Return the jobs to begin now: as many as there are idle workers, of those that wait for no other job."""
        missing = {run for run, result in (*self._waiting, *self._running) if not result}
        free = [key for key in self._waiting if not key[1] or key[0] not in missing]
        # Attacks first, because they complete cells.
        free.sort(key=lambda key: not key[1])
        begun = free[: workers - len(self._running)]
        for key in begun:
            self._running[key] = (self._waiting.pop(key), time.monotonic())
        return [self._running[key][0] for key in begun]

    def end(self, job: Job, outcome: Outcome) -> None:
        """Record how a job ended: if a simulation failed, so did its attacks."""
        key = self._keys[job.run, job.result]
        del self._running[key]
        self._forecast.learn(job, outcome.seconds)
        self._fill(key, outcome.error)
        if job.attack is None and outcome.error is not None:
            for other in [other for other in self._waiting if other[0] == key[0]]:
                del self._waiting[other]
                self._fill(other, outcome.error)
        self._write(self.cells.values())

    def standing(self, workers: int) -> Standing:
        now = time.monotonic()
        running = [(job, now - since) for job, since in self._running.values()]
        return Standing(
            done=self._total - self.left,
            total=self._total,
            running=tuple(f"{job.kind[0]}, {job.experiment.model.name}" for job, _ in running),
            seconds_left=self._forecast.seconds_left(self._waiting.values(), running, workers),
        )

    def _fill(self, key: Key, error: str | None) -> None:
        # The simulation of a run that is attacked has no cell.
        if key in self.cells:
            status = "done" if error is None else "failed"
            self.cells[key] = self.cells[key].model_copy(update={"status": status, "error": error})


def _write(out: Path, suite: Suite, cells: Iterable[Cell]) -> None:
    write_json(out / SUITE_FILE, SuiteState(name=suite.name, cells=tuple(cells)))
