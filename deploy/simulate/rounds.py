"""The rounds of a simulation on its server: the strategy, the recorder, and the bookkeeping after each."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from flwr.serverapp.strategy import Strategy

from metaleak.defenses import SharesNoise
from metaleak.deploy.results.schema import Round
from metaleak.deploy.simulate.accuracy import Accuracy
from metaleak.deploy.simulate.checkpoints import Checkpoints
from metaleak.deploy.simulate.prepared import Prepared
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.server import CuriousServer, MeanRecorder, MetaLearner, RoundReport
from metaleak.server.record.background_writer import BackgroundWriter
from metaleak.server.record.writer import RecordWriter


@dataclass(frozen=True)
class RoundDone:
    """The result of a round: `missing` learners gave no usable reply; `accuracy` is `None` if it was not measured."""

    round: int
    rounds: int
    missing: int
    accuracy: Accuracy | None


OnRound = Callable[[RoundDone], None]


class Rounds:
    """The rounds that `run` still lacks; the record and the checkpoints are written in the `background`."""

    def __init__(
        self,
        ready: Prepared,
        run: RunDirectory,
        checkpoints: Checkpoints,
        background: BackgroundWriter,
        on_round: OnRound | None,
    ) -> None:
        self._ready = ready
        self._run = run
        self._checkpoints = checkpoints
        self._background = background
        self._on_round = on_round
        self._means: MeanRecorder | None = None

    def strategy(self, chunk: int, shares_per_node: int) -> Strategy:
        """Return the strategy that does the rounds, with the recorder around it where replies are recorded."""
        experiment = self._ready.experiment
        settings, per_node = experiment.server, experiment.engine.learners_per_node
        recorded = experiment.record.rounds
        in_mean = any(defense.place == "aggregate" for defense in self._ready.federation.defenses)
        strategy: Strategy = MetaLearner(
            experiment.partition.learners,
            fraction=settings.fraction,
            optimizer=settings.optimizer,
            seed=experiment.seed,
            chunk=chunk,
            learners_per_node=None if per_node == "auto" else per_node,
            shares_per_node=shares_per_node,
            largest_norm=settings.largest_norm,
            least_learners=max(self._shares_of_noise(), default=0),
            single_rounds=0 if in_mean else recorded,
            resume_from=self._checkpoints.begin,
            on_round=self._after,
        )
        if recorded == 0:
            return strategy
        if in_mean:
            # No door to the replies: what is recorded is what a round comes to.
            self._means = MeanRecorder(self._writer(), recorded)
            return strategy
        return CuriousServer(strategy, self._writer(), recorded, must_record=True)

    def _shares_of_noise(self) -> list[int]:
        """Return on how many learners' noise each guarantee rests that is about the sum of a round."""
        defenses = self._ready.federation.defenses
        return [one.least_learners or 0 for one in defenses if isinstance(one, SharesNoise)]

    def _writer(self) -> RecordWriter:
        path = self._run.record
        if (path / "format.json").exists():
            return RecordWriter.resume(path, self._checkpoints.rounds_before, self._background)
        # Killed while its folders were made, it holds nothing yet.
        shutil.rmtree(path, ignore_errors=True)
        return RecordWriter(path, self._background, holds="gradient")

    def _after(self, report: RoundReport) -> None:
        experiment = self._ready.experiment
        accuracy = None
        if report.round == experiment.server.rounds or report.round % experiment.evaluation.every == 0:
            accuracy = self._ready.tasks.accuracy(report.parameters)
        self._run.add_metrics(
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
        self._checkpoints.keep(report.checkpoint, self._background)
        if self._on_round is not None:
            missing = report.dropped + report.late + report.failed + report.refused
            self._on_round(RoundDone(report.round, experiment.server.rounds, missing, accuracy))
