"""The server's side: the meta-learner as a Flower strategy, the curious server, and the record that it writes."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaleak.server.curious.arriving import ArrivingReplies
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
    "ArrivingReplies",
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

_MODULES = {
    "AGGREGATE": "record.layout",
    "ArrivingReplies": "curious.arriving",
    "BackgroundWriter": "record.background_writer",
    "CuriousServer": "curious.curious_server",
    "MeanRecorder": "curious.mean_recorder",
    "MetaLearner": "learning.meta_learner",
    "OuterOptimizer": "learning.optimizer",
    "Record": "record.reader",
    "RecordError": "record.layout",
    "RecordWriter": "record.writer",
    "RoundFailed": "learning.gathered",
    "RoundReport": "learning.meta_learner",
    "WatchedGrid": "curious.watched_grid",
    "curious_grid": "curious.curious_server",
}

if not TYPE_CHECKING:  # Type checkers would take any name for one of these.

    def __getattr__(name: str) -> object:
        """Import the module of a name when the name is first used."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
