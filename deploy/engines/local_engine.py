"""A simulation in this process: Flower's messages and the same client app, without Ray."""

from collections.abc import Iterable

from flwr.app import Message
from flwr.clientapp import ClientApp

from metaleak.deploy.engines.client_process import answer
from metaleak.deploy.engines.own_grid import OwnGrid, named


class LocalGrid(OwnGrid):
    """Nodes of this process: a message is answered while it is pushed, one after the other.

    What is computed is what Ray's actors compute for the same chunk, bit for bit: who computes a chunk changes none
    of its numbers. An exception of the app comes back as an error reply, as Flower's nodes would send it.
    """

    def __init__(self, app: ClientApp, nodes: int = 1) -> None:
        """`nodes` >= 1 answer, with ids that ascend from 10 000."""
        super().__init__(nodes)
        self._app = app

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer `messages`; return their ids, by which the replies can be pulled."""
        return [self._deliver(message) for message in messages]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answer `messages` and return the replies."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        name = named(message)
        self._answered[name] = answer(self._app, message)
        return name
