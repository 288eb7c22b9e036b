"""The base class of this project's Flower grids, whose messages belong to one run and go to one client app."""

from collections.abc import Iterable
from typing import NoReturn
from uuid import uuid4

from flwr.app import Message
from flwr.serverapp import Grid

from metaleak.clients.wire.flower_private import Run, begin_run, name_message

_RUN = Run.create_empty(1)
_FIRST_NODE = 10_000


class OwnGrid(Grid):
    """The common part of grids without Flower's message store; `_answered` holds the replies not yet pulled."""

    def __init__(self, nodes: int) -> None:
        """Create a grid of `nodes` >= 1 nodes, with ascending ids from 10 000."""
        self._nodes = range(_FIRST_NODE, _FIRST_NODE + nodes)
        self._answered: dict[str, Message] = {}
        begin_run(_RUN)

    def set_run(self, run: Run) -> None:
        """Do nothing: there is only one run."""

    @property
    def run(self) -> Run:
        """The run that every message belongs to."""
        return _RUN

    def create_message(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise `NotImplementedError`: messages are created with the constructor of `Message`."""
        raise NotImplementedError("use Message(content, dst_node_id=..., message_type=...)")

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes, ascending."""
        return list(self._nodes)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have arrived, each only once."""
        return [self._answered.pop(name) for name in message_ids if name in self._answered]


def named(message: Message) -> str:
    """Give `message` a new id, and return the id."""
    name = str(uuid4())
    name_message(message, name)
    return name
