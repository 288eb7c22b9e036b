"""A Flower grid that runs a `ClientApp` in this process: the same messages, no Ray."""

from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from metaleak.clients import client_app
from metaleak.deploy.experiment import Experiment
from metaleak.deploy.launch import RoundDone, Simulation
from metaleak.deploy.run_directory import RunDirectory


class LocalGrid(Grid):
    """Nodes with fixed ids; a reply is there as soon as its message is pushed, in reverse order to be unkind.

    `seen` keeps every message that passed, both ways. `spoil` may change a reply before it is delivered.
    """

    def __init__(self, app: ClientApp, nodes: int = 2, spoil: Callable[[Message], Message] | None = None) -> None:
        self.app = app
        self.ids = [10_000 + node for node in range(nodes)]
        self.seen: list[Message] = []
        self._spoil = spoil
        self._waiting: dict[str, Message] = {}
        # Flower stamps every message with the run it belongs to; its launcher sets it, and here there is none.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def _deliver(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = str(uuid4())
        self.seen.append(message)
        context = Context(
            run_id=1, node_id=message.metadata.dst_node_id, node_config={}, state=RecordDict(), run_config={}
        )
        try:
            reply = self.app(message, context)
        except Exception as error:  # noqa: BLE001 (Flower turns whatever a client raises into an error reply)
            reply = Message(Error(code=0, reason=str(error)), reply_to=message)
        if self._spoil is not None:
            reply = self._spoil(reply)
        self.seen.append(reply)
        self._waiting[message.metadata.message_id] = reply
        return message.metadata.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [self._waiting.pop(name) for name in set(message_ids) & set(self._waiting)]
        return sorted(ready, key=lambda reply: -reply.metadata.src_node_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(list(self.push_messages(messages)))


def local_simulate(
    experiment: Experiment, out: Path, on_round: Callable[[RoundDone], None] | None = None
) -> RunDirectory:
    """What `metaleak.deploy.launch.simulate` does, on a local grid."""
    simulation = Simulation(experiment, out, on_round)
    return simulation.serve(LocalGrid(client_app(simulation.federation)))
