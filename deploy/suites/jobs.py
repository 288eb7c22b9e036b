"""The jobs of a suite: one simulation or one attack each, executed by a worker process."""

import time
from dataclasses import dataclass
from pathlib import Path

from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.errors import one_line
from metaleak.deploy.results.reading import read_attack
from metaleak.deploy.simulate.launch import simulate_here
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.server.record.plain_file import is_plain


@dataclass(frozen=True)
class Job:
    """A job in the run directory `run`: an `attack` that writes `result`, or, if it is `None`, the simulation."""

    experiment: Experiment
    run: Path
    attack: Plugin | None = None
    result: str = ""

    @property
    def done(self) -> bool:
        """Whether its result exists already."""
        if self.attack is not None:
            return is_plain(self.run, f"attacks/{self.result}/attack.json")
        return RunDirectory(self.run).done

    @property
    def proven_wrong(self) -> str | None:
        """Why an existing result cannot be right, because it proves more than a guarantee allows; or `None`."""
        if self.attack is None:
            return None
        try:
            privacy = read_attack(self.run, f"attacks/{self.result}").result.privacy
            if privacy is not None:
                privacy.check()
        except ValueError as error:
            return one_line(error)
        return None

    @property
    def kind(self) -> tuple[str, ...]:
        """What the duration depends on, the most important first; jobs of one kind take about the same time."""
        experiment = self.experiment
        what = "simulation" if self.attack is None else self.attack.name
        asked = "" if self.attack is None else str(self.attack.settings)
        task, model = experiment.task, experiment.model
        size = f"{task.ways} {task.shots} {task.queries} {task.episodes_per_message} {experiment.partition.learners}"
        return (what, f"{model.name} {model.settings}", size, asked)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its `error` in one line, or `None`, and the `seconds` it took."""

    error: str | None
    seconds: float


def do(job: Job) -> Outcome:
    """Do one job; errors are returned in its outcome.

    An interrupted simulation is resumed, and so is an attack whose targets can be split.
    """
    started = time.monotonic()
    error: str | None = None
    try:
        if job.attack is None:
            simulate_here(job.experiment, job.run)
        else:
            assess(RunDirectory.open(job.run), job.experiment, job.attack, job.result)
    except Exception as trouble:  # noqa: BLE001 (one cell's trouble, of whatever kind, is not the others')
        error = one_line(trouble)
    return Outcome(error, time.monotonic() - started)
