"""A federation small enough for any test: ten learners with digits of 8x8 and a tiny network."""

from typing import Any

from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.datasets import Digits
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML


def federation(**changes: Any) -> Federation:
    """Return the small federation, with some of its fields changed."""
    settings: dict[str, Any] = {
        "seed": 1,
        "data": Digits(),
        "task": TaskShape(ways=3),
        "partition": Partition(learners=10),
        "model": MLP(hidden=(8,)),
        "rule": MAML(),
    }
    return Federation(**{**settings, **changes})
