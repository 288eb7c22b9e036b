"""The meta-learner's side: the Flower strategy, the curious server, and the record it writes."""

from metaleak.server.background_writer import BackgroundWriter
from metaleak.server.curious import CuriousServer, curious_grid
from metaleak.server.meta_learner import MetaLearner, RoundFailed, RoundReport
from metaleak.server.optimiser import OuterOptimiser
from metaleak.server.record import Record, RecordError, RecordWriter
from metaleak.server.watched_grid import WatchedGrid

__all__ = [
    "BackgroundWriter",
    "CuriousServer",
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
