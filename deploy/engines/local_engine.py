"""Simulation in this process, with Flower's messages and the same client app but without Ray."""

from collections.abc import Iterable

from flwr.app import Message
from flwr.clientapp import ClientApp

from metaleak.deploy.engines.client_process import answer
from metaleak.deploy.engines.own_grid import OwnGrid, named


class LocalGrid(OwnGrid):
    """A grid whose nodes run in this process: messages are answered one after another as they are pushed.

    The results equal those of Ray actors for the same chunk, bit for bit: a chunk's numbers do not depend on the
    process that computes it. An exception in the app becomes an error reply, as on Flower's nodes.
    """

    def __init__(self, app: ClientApp, nodes: int = 1) -> None:
        """Create a grid of `nodes` >= 1 nodes, with ascending ids from 10 000, that run `app`."""
        super().__init__(nodes)
        self._app = app

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer `messages`; return their ids, with which the replies can be pulled."""
        return [self._deliver(message) for message in messages]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answer `messages` and return the replies."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        name = named(message)
        self._answered[name] = answer(self._app, message)
        return name
