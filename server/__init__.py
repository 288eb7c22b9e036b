"""The meta-learner's side: the Flower strategy, the curious server, and the record it writes."""

from metaleak.server.background_writer import BackgroundWriter
from metaleak.server.curious import CuriousServer, curious_grid
from metaleak.server.gathered import RoundFailed
from metaleak.server.mean_recorder import MeanRecorder
from metaleak.server.meta_learner import MetaLearner, RoundReport
from metaleak.server.optimiser import OuterOptimiser
from metaleak.server.record import Record
from metaleak.server.record_layout import AGGREGATE, RecordError
from metaleak.server.record_writer import RecordWriter
from metaleak.server.watched_grid import WatchedGrid

__all__ = [
    "AGGREGATE",
    "BackgroundWriter",
    "CuriousServer",
    "MeanRecorder",
    "MetaLearner",
    "OuterOptimiser",
    "Record",
    "RecordError",
    "RecordWriter",
    "RoundFailed",
    "RoundReport",
    "WatchedGrid",
    "curious_grid",
]
