"""Running an experiment's simulation: what the server does, and where its actors are."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from metaleak.clients.app import client_app
from metaleak.clients.device import torch_device
from metaleak.deploy.config.experiment import Experiment, simulation_key
from metaleak.deploy.engines.local_engine import LocalGrid
from metaleak.deploy.engines.ray_engine import RayEngine
from metaleak.deploy.errors import Interrupted, one_line
from metaleak.deploy.results.schema import Round
from metaleak.deploy.simulate.accuracy import Accuracy, HeldOutTasks
from metaleak.deploy.simulate.measured_chunk import measured_chunk
from metaleak.deploy.simulate.run_directory import RunDirectory, Status, read_parameters
from metaleak.deploy.simulate.trial import try_out
from metaleak.server import CuriousServer, MeanRecorder, MetaLearner, RoundReport, WatchedGrid
from metaleak.server.learning.checkpoint import Checkpoint, read_checkpoint
from metaleak.server.learning.meta_learner import LARGEST_SHARE, sample_size
from metaleak.server.record.background_writer import BackgroundWriter
from metaleak.server.record.whole_file import write_whole
from metaleak.server.record.writer import RecordWriter


@dataclass(frozen=True)
class RoundDone:
    """What a caller hears after a round: `missing` learners gave no usable answer, `accuracy` may not be measured."""

    round: int
    rounds: int
    missing: int
    accuracy: Accuracy | None


class Simulation:
    """One experiment being simulated into a run directory.

    Everything that can be wrong with the data or the models is found here, before any actor starts: raises
    `ValueError` or `OSError` with one line. `resume` goes on with the run in `out`.
    """

    def __init__(
        self,
        experiment: Experiment,
        out: Path,
        on_round: Callable[[RoundDone], None] | None = None,
        resume: bool = False,
    ) -> None:
        # Small tensors gain nothing from more threads, and lose much when the cores are busy.
        torch.set_num_threads(1)
        self.experiment = experiment
        self.federation = experiment.federation()
        self._initial = self.federation.initial_parameters()
        if experiment.server.start_from is not None:
            self._initial = read_parameters(experiment.server.start_from, like=self._initial)
        self._tasks = HeldOutTasks(self.federation, experiment.evaluation)
        try_out(self.federation)
        self._on_round = on_round
        self._engine: RayEngine | None = None
        self._last: Checkpoint | None = None
        self._means: MeanRecorder | None = None
        self.run = RunDirectory.open(out) if resume else RunDirectory.create(out, experiment)
        self._from = self._checkpoint() if resume else None
        try:
            self._chunk = self._chosen_chunk()
        except BaseException:
            if not resume:
                # Nothing was simulated: what is left behind would only be in the way of the next try.
                shutil.rmtree(self.run.path, ignore_errors=True)
            raise

    def serve(self, grid: Grid) -> RunDirectory:
        """Be the server on `grid` until the last round; return the run.

        However it ends, `run.json` says so. Raises `ValueError` before the first round when that file is damaged.
        """
        with self.run.held():
            self.run.begin()
            try:
                with BackgroundWriter() as background:
                    self.run.forget_metrics(self._done)
                    self._strategy(background).start(
                        WatchedGrid(grid, check=self._check),
                        initial_arrays=ArrayRecord(
                            {name: Array(value.numpy()) for name, value in self._initial.items()}
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

    def start_on(self, engine: RayEngine) -> RunDirectory:
        """Simulate to the end on Ray actors; return the run. Raises `Interrupted` on Ctrl-C."""
        self._engine = engine
        engine.run(client_app(self.federation, self.experiment.engine.device), self.serve)
        if engine.stopped:
            raise Interrupted(
                f"{self.run.path}: interrupted; `metaleak simulate --resume {self.run.path}` goes on from here"
            )
        return self.run

    def start_here(self) -> RunDirectory:
        """Simulate to the end in this process, without Ray; return the run, the same but for `seconds`."""
        engine = self.experiment.engine
        per_node = engine.learners_per_node
        nodes = 1 if per_node == "auto" else -(-self.experiment.partition.learners // per_node)
        return self.serve(LocalGrid(client_app(self.federation, engine.device), nodes))

    def _strategy(self, background: BackgroundWriter) -> Strategy:
        settings, engine = self.experiment.server, self.experiment.engine
        self._background = background
        strategy: Strategy = MetaLearner(
            self.experiment.partition.learners,
            fraction=settings.fraction,
            optimizer=settings.optimizer,
            seed=self.experiment.seed,
            chunk=self._chunk,
            learners_per_node=None if engine.learners_per_node == "auto" else engine.learners_per_node,
            # A SuperNode starts a process a message; Ray's actors are there and share out the rest of the work
            # better.
            shares_per_node=1 if self._engine is None else 2,
            largest_norm=settings.largest_norm,
            resume_from=self._from,
            on_round=self._after_round,
        )
        recorded = self.experiment.record.rounds
        if recorded == 0:
            return strategy
        if (self.run.record / "format.json").exists():
            writer = RecordWriter.resume(self.run.record, self._done, background)
        else:
            # Killed while its folders were made, it holds nothing yet.
            shutil.rmtree(self.run.record, ignore_errors=True)
            writer = RecordWriter(self.run.record, background, holds="gradient")
        if any(defense.place == "aggregate" for defense in self.federation.defenses):
            # No door to the replies: what is recorded is what a round comes to.
            self._means = MeanRecorder(writer, recorded)
            return strategy
        return CuriousServer(strategy, writer, recorded, must_record=True)

    def _check(self) -> None:
        if self._engine is not None:
            self._engine.check()
            if self._engine.stopped:
                raise Interrupted("stopped")

    def _after_round(self, report: RoundReport) -> None:
        rounds = self.experiment.server.rounds
        accuracy = None
        if report.round == rounds or report.round % self.experiment.evaluation.every == 0:
            accuracy = self._tasks.accuracy(report.parameters)
        self.run.add_metrics(
            Round(
                round=report.round,
                loss=accuracy and accuracy.loss,
                learners=report.learners,
                dropped=report.dropped,
                late=report.late,
                failed=report.failed,
                refused=report.refused,
                seconds=round(report.seconds, 4),
                accuracy=accuracy and accuracy.value,
                accuracy_low=accuracy and accuracy.low,
                accuracy_high=accuracy and accuracy.high,
            )
        )
        if self._means is not None:
            self._means.take(report)
        self._last = report.checkpoint
        content = report.checkpoint.content()
        # Behind the round's replies in one queue: a checkpoint on disk means that its record is there too.
        self._background.submit(len(content), lambda: write_whole(self.run.checkpoint, content))
        if self._on_round is not None:
            missing = report.dropped + report.late + report.failed + report.refused
            self._on_round(RoundDone(report.round, rounds, missing, accuracy))

    @property
    def _done(self) -> int:
        """How many rounds were done before this process began."""
        return self._from.round if self._from is not None else 0

    def _end(self, status: Status, error: str | None = None) -> None:
        last = self._last or self._from
        if status != "done":
            # Said first: on a full disk the rest may fail.
            self.run.end(status, error)
        if last is not None:
            self.run.save_parameters(last.parameters)
        if status == "done":
            self.run.end(status)

    def _checkpoint(self) -> Checkpoint | None:
        """Return where the run goes on, or `None` when its first round was never done."""
        if not self.run.checkpoint.exists():
            return None
        checkpoint = read_checkpoint(self.run.checkpoint)
        shapes = {name: value.shape for name, value in checkpoint.parameters.items()}
        if shapes != {name: value.shape for name, value in self._initial.items()}:
            raise ValueError(f"{self.run.checkpoint}: is of another model than experiment.yaml")
        return checkpoint

    def _chosen_chunk(self) -> int:
        """Return how many learners are computed at once, and write it down: it decides the last bits."""
        asked, known = self.experiment.engine.chunk, self.run.state().chunk
        if asked == "auto" and known is not None:
            return known
        if asked == "auto":
            asked = measured_chunk(self.federation, torch_device(self.experiment.engine.device))
            # A round needs a few chunks to share out, whatever the number of actors, and none that fills the memory.
            sampled = sample_size(self.experiment.partition.learners, self.experiment.server.fraction)
            size = sum(value.numel() * value.element_size() for value in self._initial.values())
            while asked > 1 and (4 * asked > sampled or asked * size > LARGEST_SHARE):
                asked //= 2
        self.run.keep_chunk(asked)
        return asked


def simulate(experiment: Experiment, out: Path, on_round: Callable[[RoundDone], None] | None = None) -> RunDirectory:
    """Simulate `experiment` on Ray actors into the new directory `out` and return the run; see `Simulation`."""
    RunDirectory.must_be_free(out)
    return simulated_on_ray(experiment, out, on_round)


def simulate_here(experiment: Experiment, out: Path) -> RunDirectory:
    """Simulate `experiment` in this process into `out` and return the run.

    What is there already goes on, and what is done is returned as it is; see `resume`.
    """
    if not (out / "experiment.yaml").exists():
        return Simulation(experiment, out).start_here()
    run = RunDirectory.open(out)
    # What the run was stored as is compared as it stands: it may name code, and only the experiment's own is run.
    _must_go_on_as_it_began(run, run.stored(), experiment)
    return run if run.done else Simulation(experiment, out, resume=True).start_here()


def resume(
    out: Path,
    changes: Sequence[str] = (),
    on_round: Callable[[RoundDone], None] | None = None,
    trust: bool = False,
) -> RunDirectory:
    """Go on with the run in `out` from its last round, and return it; one that is done is returned as it is.

    The final parameters and the record are those of a run that was never disturbed, bit for bit. `changes` may
    concern where it runs, `engine.` and the data's place, and nothing that decides what is computed: raises
    `ValueError`, and for a run that names code unless you `trust` it, see `RunDirectory.experiment`. Without trust it
    goes on here, or on the cluster that `changes` name, and not on the one that the run names.
    """
    run = RunDirectory.open(out)
    # To join a stranger's cluster would be to run what it sends.
    changes = tuple(changes) if trust else ("engine.ray_address=null", *changes)
    experiment = run.experiment(changes, trust)
    _must_go_on_as_it_began(run, run.experiment(trust=trust).resolved(), experiment)
    if run.done:
        return run
    return simulated_on_ray(experiment, run.path, on_round, resume=True)


def simulated_on_ray(
    experiment: Experiment, out: Path, on_round: Callable[[RoundDone], None] | None, resume: bool = False
) -> RunDirectory:
    """Simulate `experiment` to the end on Ray actors, into `out`; return the run."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        # Ray takes longer to start, most of it waiting, and its processes die with the thread that started them. What
        # is done beside it leaves nothing behind but a warm process, whatever happens.
        tried = beside.submit(try_out, experiment.federation())
        try:
            engine = RayEngine(experiment.engine, experiment.partition.learners)
        except Exception:
            # A wrong experiment is told before a Ray that does not start.
            tried.result()
            raise
    try:
        tried.result()
        simulation = Simulation(experiment, out, on_round, resume)
    except BaseException:
        engine.close()
        raise
    return simulation.start_on(engine)


def _must_go_on_as_it_began(run: RunDirectory, before: object, experiment: Experiment) -> None:
    """Refuse an experiment that computes something else than the resolved one `before`."""
    engine = before.get("engine") if isinstance(before, dict) else None
    same = isinstance(engine, dict) and all(
        engine.get(key) == getattr(experiment.engine, key) for key in ("chunk", "learners_per_node", "device")
    )
    if not isinstance(before, dict) or simulation_key(before) != experiment.simulation_key() or not same:
        raise ValueError(
            f"{run.path}: a run goes on as it began; only engine.actors, engine.timeout, engine.ray_address and the "
            "data's place may be changed"
        )
