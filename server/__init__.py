"""The meta-learner's side: the Flower strategy, the curious server, and the record it writes."""

from metaleak.server.curious.curious_server import CuriousServer, curious_grid
from metaleak.server.curious.mean_recorder import MeanRecorder
from metaleak.server.curious.watched_grid import WatchedGrid
from metaleak.server.learning.gathered import RoundFailed
from metaleak.server.learning.meta_learner import MetaLearner, RoundReport
from metaleak.server.learning.optimizer import OuterOptimizer
from metaleak.server.record.background_writer import BackgroundWriter
from metaleak.server.record.layout import AGGREGATE, RecordError
from metaleak.server.record.reader import Record
from metaleak.server.record.writer import RecordWriter

__all__ = [
    "AGGREGATE",
    "BackgroundWriter",
    "CuriousServer",
    "MeanRecorder",
    "MetaLearner",
    "OuterOptimizer",
    "Record",
    "RecordError",
    "RecordWriter",
    "RoundFailed",
    "RoundReport",
    "WatchedGrid",
    "curious_grid",
]
