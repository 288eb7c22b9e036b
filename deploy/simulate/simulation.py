"""One experiment simulated into a run directory, on any grid."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp import Grid

from metaleak.clients.federation import Federation
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.errors import Interrupted, one_line
from metaleak.deploy.simulate.checkpoints import Checkpoints
from metaleak.deploy.simulate.chosen_chunk import chosen_chunk
from metaleak.deploy.simulate.prepared import prepared
from metaleak.deploy.simulate.rounds import OnRound, Rounds
from metaleak.deploy.simulate.run_directory import RunDirectory, Status
from metaleak.server import ArrivingReplies, WatchedGrid
from metaleak.server.record.background_writer import BackgroundWriter


class Simulation:
    """One experiment that is simulated into a run directory.

    All errors in the data or the models are raised by the constructor, before any actor starts, as `ValueError` or
    `OSError` with one line. With `resume` the run in `out` is resumed.
    """

    def __init__(
        self, experiment: Experiment, out: Path, on_round: OnRound | None = None, resume: bool = False
    ) -> None:
        # Small tensors gain nothing from more threads, and lose much when the cores are busy.
        torch.set_num_threads(1)
        keep_freed_memory()
        self.experiment = experiment
        self._ready = prepared(experiment)
        self._on_round = on_round
        self.run = RunDirectory.open(out) if resume else RunDirectory.create(out, experiment)
        self._checkpoints = Checkpoints(self.run, self._ready.initial, resume)
        try:
            known = self.run.state().chunk
            self._chunk = chosen_chunk(self._ready, known)
            if self._chunk != known:
                self.run.keep_chunk(self._chunk)
        except BaseException:
            if not resume:
                # Nothing was simulated: the empty run directory would only block the next attempt.
                shutil.rmtree(self.run.path, ignore_errors=True)
            raise

    @property
    def federation(self) -> Federation:
        """The experiment's learners."""
        return self._ready.federation

    def serve(
        self,
        grid: Grid,
        check: Callable[[], None] = lambda: None,
        shares_per_node: int = 1,
        arriving: ArrivingReplies | None = None,
    ) -> RunDirectory:
        """Run the server on `grid` until the last round, and return the run.

        `check` is called while waiting, and may raise. Each node gets `shares_per_node` messages per round, see
        `MetaLearner`. Nodes on this machine may write their replies as files into the folder of `arriving`.
        `run.json` states how the simulation ended. Raises `ValueError` before the first round if that file is
        damaged.
        """
        with self.run.held(), arriving or nullcontext():
            self.run.begin()
            try:
                with BackgroundWriter() as background:
                    self.run.forget_metrics(self._checkpoints.rounds_before)
                    rounds = Rounds(self._ready, self.run, self._checkpoints, background, self._on_round)
                    rounds.strategy(self._chunk, shares_per_node).start(
                        WatchedGrid(grid, received=None if arriving is None else arriving.take, check=check),
                        initial_arrays=ArrayRecord(
                            {name: Array(value.numpy()) for name, value in self._ready.initial.items()}
                        ),
                        num_rounds=self.experiment.server.rounds,
                        timeout=self.experiment.engine.timeout,
                    )
            except Interrupted:
                self._end("interrupted")
                raise
            except BaseException as error:
                self._end("failed", one_line(error))
                raise
            self._end("done")
        return self.run

    def _end(self, status: Status, error: str | None = None) -> None:
        if status != "done":
            # Noted first: on a full disk the rest may fail.
            self.run.end(status, error)
        self._checkpoints.save_parameters()
        if status == "done":
            self.run.end(status)
