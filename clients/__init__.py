"""Task-learners: private shards, few-shot models, meta-learning rules, and the Flower client that hosts them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaleak.clients.app import client_app
    from metaleak.clients.episode import Episode, Parameters
    from metaleak.clients.federation import Federation
    from metaleak.clients.learner import TaskLearner
    from metaleak.clients.partition import Partition, TaskShape

__all__ = ["Episode", "Federation", "Parameters", "Partition", "TaskLearner", "TaskShape", "client_app"]

_MODULES = {
    "Episode": "episode",
    "Federation": "federation",
    "Parameters": "episode",
    "Partition": "partition",
    "TaskLearner": "learner",
    "TaskShape": "partition",
    "client_app": "app",
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
