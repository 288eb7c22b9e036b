"""A simulation in this process: Flower's messages and the same client app, without Ray."""

from collections.abc import Iterable
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from metaleak.clients.wire.flower_private import ErrorCode, Run, begin_run, name_message
from metaleak.deploy.errors import one_line

_RUN = Run.create_empty(1)
_FIRST_NODE = 10_000


class LocalGrid(Grid):
    """Nodes of this process: a message is answered while it is pushed, one after the other.

    What is computed is what Ray's actors compute for the same chunk, bit for bit: who computes a chunk changes none
    of its numbers. An exception of the app comes back as an error reply, as Flower's nodes would send it.
    """

    def __init__(self, app: ClientApp, nodes: int = 1) -> None:
        """`nodes` >= 1 answer, with ids that ascend from 10 000."""
        self._app = app
        self._nodes = range(_FIRST_NODE, _FIRST_NODE + nodes)
        self._answered: dict[str, Message] = {}
        begin_run(_RUN)

    def set_run(self, run: Run) -> None:
        """Do nothing: there is only one run."""

    @property
    def run(self) -> Run:
        """The run that every message belongs to."""
        return _RUN

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Refuse: messages are made by their constructor. Raises `NotImplementedError`."""
        raise NotImplementedError("use Message(content, dst_node_id=..., message_type=...)")

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes, ascending."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer `messages`; return their ids, by which the replies can be pulled."""
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages, each once."""
        return [self._answered.pop(name) for name in message_ids if name in self._answered]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answer `messages` and return the replies."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        name = str(uuid4())
        name_message(message, name)
        context = Context(
            run_id=_RUN.run_id,
            node_id=message.metadata.dst_node_id,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        try:
            self._answered[name] = self._app(message, context)
        except Exception as error:  # noqa: BLE001 (whatever a client raises is its reply)
            failed = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=one_line(error))
            self._answered[name] = Message(failed, reply_to=message)
        return name
