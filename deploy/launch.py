"""Running an experiment's simulation on Flower and Ray, in one function."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from flwr.simulation import run_simulation

from metaleak.clients.app import client_app
from metaleak.clients.episode import Parameters
from metaleak.clients.federation import Federation
from metaleak.deploy.accuracy import Accuracy, HeldOutTasks
from metaleak.deploy.cores import usable_cores
from metaleak.deploy.errors import Interrupted, one_line
from metaleak.deploy.experiment import Experiment
from metaleak.deploy.interruption import interruptible
from metaleak.deploy.run_directory import RunDirectory, read_parameters
from metaleak.server import CuriousServer, MetaLearner, RoundReport, WatchedGrid

_SAVE_EVERY_SECONDS = 30.0
_PATIENCE_SECONDS = 0.5


@dataclass(frozen=True)
class RoundDone:
    """What a caller hears after a round; `refused` learners gave no usable answer, `accuracy` may not be measured."""

    round: int
    rounds: int
    refused: int
    accuracy: Accuracy | None


class Simulation:
    """One experiment being simulated into a run directory.

    Everything that can be wrong with the data or the models is found here, before any actor starts: raises
    `ValueError` or `OSError` with one line.
    """

    def __init__(
        self, experiment: Experiment, out: Path, on_round: Callable[[RoundDone], None] | None = None
    ) -> None:
        # Small tensors gain nothing from more threads, and lose much when the cores are busy.
        torch.set_num_threads(1)
        self.experiment = experiment
        self.federation = experiment.federation()
        self._initial = self.federation.initial_parameters()
        if experiment.server.start_from is not None:
            self._initial = read_parameters(experiment.server.start_from, like=self._initial)
        self._tasks = HeldOutTasks(self.federation, experiment.evaluation)
        _try_out(self.federation, self._initial)
        self._on_round = on_round
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._saved = time.monotonic()
        self.run = RunDirectory.create(out, experiment)

    def serve(self, grid: Grid) -> RunDirectory:
        """Be the server on `grid` until the last round; return the run.

        However it ends, `run.json` says so.
        """
        initial = ArrayRecord({name: Array(value.numpy()) for name, value in self._initial.items()})
        try:
            self._strategy().start(
                WatchedGrid(grid, check=self._check),
                initial_arrays=initial,
                num_rounds=self.experiment.server.rounds,
                timeout=self.experiment.engine.timeout,
            )
        except Interrupted:
            self.run.end("interrupted")
            raise
        except BaseException as error:
            self.run.end("failed", one_line(error))
            raise
        self.run.end("done")
        return self.run

    def start(self) -> RunDirectory:
        """Simulate to the end on Ray actors of this machine; return the run. Raises `Interrupted` on Ctrl-C."""
        # Flower logs the tracebacks of what fails; what matters of them comes as an error's one line.
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        actors = self.experiment.engine.actors or usable_cores()
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            self.serve(grid)

        try:
            with interruptible(self._interrupt):
                run_simulation(
                    server_app=server,
                    client_app=client_app(self.federation),
                    num_supernodes=actors,
                    backend_config={
                        "init_args": {"num_cpus": actors, "log_to_driver": False, "logging_level": logging.ERROR},
                        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                    },
                )
        except Exception:
            # Ray is pulled away from under Flower when actors do not end by themselves: the complaints mean nothing.
            if not self._stop.is_set():
                raise
        finally:
            self._ended.set()
        if self._stop.is_set():
            raise Interrupted(f"{self.run.path}: interrupted; what was recorded is readable")
        return self.run

    def _interrupt(self) -> None:
        """Let the server stop at its next look at the grid, and end the actors if they are still busy then."""
        self._stop.set()

        def end_actors() -> None:
            if not self._ended.wait(_PATIENCE_SECONDS):
                ray.shutdown()

        threading.Thread(target=end_actors, daemon=True).start()

    def _strategy(self) -> Strategy:
        settings = self.experiment.server
        strategy: Strategy = MetaLearner(
            self.experiment.partition.learners,
            fraction=settings.fraction,
            optimiser=settings.optimiser,
            seed=self.experiment.seed,
            on_round=self._after_round,
        )
        recorded = self.experiment.record.rounds
        return strategy if recorded == 0 else CuriousServer(strategy, self.run.record, recorded)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Interrupted("stopped")

    def _after_round(self, report: RoundReport) -> None:
        rounds = self.experiment.server.rounds
        last = report.round == rounds
        accuracy = None
        if last or report.round % self.experiment.evaluation.every == 0:
            accuracy = self._tasks.accuracy(report.parameters)
        self.run.add_metrics(
            round=report.round,
            loss=accuracy and accuracy.loss,
            learners=report.learners,
            refused=report.refused,
            seconds=round(report.seconds, 4),
            accuracy=accuracy and accuracy.value,
            accuracy_low=accuracy and accuracy.low,
            accuracy_high=accuracy and accuracy.high,
        )
        if last or time.monotonic() - self._saved > _SAVE_EVERY_SECONDS:
            self.run.save_parameters(report.parameters)
            self._saved = time.monotonic()
        if self._on_round is not None:
            self._on_round(RoundDone(report.round, rounds, report.refused, accuracy))


def _try_out(federation: Federation, parameters: Parameters) -> None:
    """Compute one learner's meta-gradient, so that a model or rule that cannot is found before any actor starts."""
    try:
        federation.learner(0).meta_gradient(parameters, 1)
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"the model and the rule give no meta-gradient: {one_line(error)}") from error


def simulate(experiment: Experiment, out: Path, on_round: Callable[[RoundDone], None] | None = None) -> RunDirectory:
    """Simulate `experiment` into the new directory `out` and return the run; see `Simulation`."""
    return Simulation(experiment, out, on_round).start()
