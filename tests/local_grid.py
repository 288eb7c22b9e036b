"""The engine of this process, made unkind: replies in another order, every message kept, replies spoiled."""

from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Message
from flwr.clientapp import ClientApp

from metaleak.clients import client_app
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.engines.local_engine import LocalGrid as PlainGrid
from metaleak.deploy.simulate.rounds import RoundDone
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.deploy.simulate.simulation import Simulation


class LocalGrid(PlainGrid):
    """Replies come in the reverse order of their nodes.

    `seen` keeps every message that passed, both ways. `spoil` may change a reply before it is delivered.
    """

    def __init__(self, app: ClientApp, nodes: int = 2, spoil: Callable[[Message], Message] | None = None) -> None:
        super().__init__(app, nodes)
        self.seen: list[Message] = []
        self._spoil = spoil

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            # Seen before it is answered: the order in which they passed.
            self.seen.append(message)
            (name,) = super().push_messages([message])
            reply = self._answered[name]
            self._answered[name] = self._spoil(reply) if self._spoil else reply
            self.seen.append(self._answered[name])
            sent.append(name)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return sorted(super().pull_messages(message_ids), key=lambda reply: -reply.metadata.src_node_id)


def local_simulate(
    experiment: Experiment, out: Path, on_round: Callable[[RoundDone], None] | None = None, resume: bool = False
) -> RunDirectory:
    """What `metaleak.deploy.simulate.launch.simulated_on_ray` does, on an unkind grid of two nodes."""
    simulation = Simulation(experiment, out, on_round, resume)
    return simulation.serve(LocalGrid(client_app(simulation.federation)))
