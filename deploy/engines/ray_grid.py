"""A Flower grid whose nodes are Ray actors: any free actor answers, and its next message is sent ahead of time.

Flower's own simulation polls each node every 0.1 s, takes one message, and sends the client app along with each. Here
each actor receives the app once, the arrays of a round are put into Ray's object store once, and a reply wakes the
server immediately.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from ray.exceptions import RayActorError

from metaleak.clients.wire.flower_private import ErrorCode, name_message
from metaleak.deploy.engines.client_process import ClientAppActor
from metaleak.deploy.engines.own_grid import OwnGrid, named
from metaleak.deploy.errors import one_line

AHEAD = 2
"""The number of messages that an actor holds at once: the one it is answering, and the next."""

_LONGEST_REST = 5.0
"""The longest pause, in seconds, for an actor whose process was lost: a new process takes seconds to start."""


@dataclass(eq=False)
class _Actor:
    """An actor and its pending messages, stored without arrays and keyed by the reference to the expected reply."""

    handle: Any
    asked: dict[Any, Message] = field(default_factory=dict)
    answered: bool = False
    lost: int = 0
    rests_until: float = 0.0

    @property
    def room(self) -> bool:
        # An actor that has not answered yet may have no machine to run on.
        return len(self.asked) < (AHEAD if self.answered else 1)


class RayGrid(OwnGrid):
    """A grid of `nodes` whose messages `actors` processes answer with `app`, each with `gpus` GPUs (or a fraction).

    Any actor can answer for any node. Ray restarts an actor that dies; its pending messages are answered with an
    error, so that the server can send them again.
    """

    def __init__(self, app: ClientApp, nodes: int, actors: int, gpus: float = 0.0) -> None:
        super().__init__(nodes)
        kind: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1)(ClientAppActor)
        self._actors = [_Actor(kind.remote(app)) for _ in range(actors)]
        self._waiting: deque[Message] = deque()
        self._stored: dict[str, tuple[ArrayRecord, Any]] = {}

    @property
    def at_once(self) -> int:
        """How many messages keep all actors busy."""
        return AHEAD * len(self._actors)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send `messages`; return their ids, with which the replies can be pulled."""
        now = time.time()
        # The replies of a finished round are never pulled.
        self._answered = {name: reply for name, reply in self._answered.items() if not _expired(reply, now)}
        pushed = list(messages)
        names = [named(message) for message in pushed]
        self._waiting += pushed
        self._hand_out()
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have arrived, each only once."""
        self._collect(0.0)
        return super().pull_messages(message_ids)

    def await_replies(self, seconds: float, at_most: float) -> None:
        """Return once a reply has arrived, or after `at_most` seconds; `seconds` is ignored."""
        self._collect(at_most)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send `messages`; return the replies that arrive within `timeout` seconds, or all if it is `None`."""
        missing, replies = set(self.push_messages(messages)), list[Message]()
        end = None if timeout is None else time.monotonic() + timeout
        while missing and (end is None or time.monotonic() < end):
            self._collect(0.1)
            come = list(self.pull_messages(missing))
            missing -= {reply.metadata.reply_to_message_id for reply in come}
            replies += come
        return replies

    def _hand_out(self) -> None:
        while self._waiting:
            now = time.monotonic()
            free = [actor for actor in self._actors if actor.room and actor.rests_until <= now]
            if not free:
                return
            message = self._waiting.popleft()
            if _expired(message, time.time()):
                self._keep(_error(message, ErrorCode.MESSAGE_UNAVAILABLE, "no actor was free in time"), message)
                continue
            actor = min(free, key=lambda one: len(one.asked))
            light, names, stored = self._lightened(message)
            actor.asked[actor.handle.run.remote(light, names, *stored)] = light

    def _lightened(self, message: Message) -> tuple[Message, tuple[str, ...], list[Any]]:
        """Return a message without its arrays, their names, and references; arrays of a round are stored once."""
        content = message.content
        arrays = content.array_records
        self._stored = {
            name: known if (known := self._stored.get(name)) and known[0] is record else (record, ray.put(record))
            for name, record in arrays.items()
        }
        light = copy(message)
        light.content = RecordDict({name: record for name, record in content.items() if name not in arrays})
        return light, tuple(arrays), [self._stored[name][1] for name in arrays]

    def _collect(self, seconds: float) -> None:
        """Collect the replies that have arrived; if there are none, wait up to `seconds` for one."""
        waited = {reference: actor for actor in self._actors for reference in actor.asked}
        if not waited:
            time.sleep(seconds)
        ready = _ready(list(waited), 0.0)
        if not ready and seconds:
            ready = _ready(list(waited), seconds)
        for reference in ready:
            actor = waited[reference]
            message = actor.asked.pop(reference)
            try:
                reply: Message = ray.get(reference)
                actor.answered, actor.lost, actor.rests_until = True, 0, 0.0
            except Exception as error:  # noqa: BLE001 (a lost process or machine, or no memory: the server retries)
                actor.answered, actor.lost = False, actor.lost + 1
                actor.rests_until = time.monotonic() + min(_LONGEST_REST, 0.1 * 2**actor.lost)
                # An app that cannot be constructed would also fail on the next actor.
                hopeless = isinstance(error, RayActorError) and error.actor_init_failed
                code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION if hopeless else ErrorCode.UNKNOWN
                reply = _error(message, code, one_line(error))
            self._keep(reply, message)
        self._hand_out()

    def _keep(self, reply: Message, message: Message) -> None:
        """Keep the reply to `message` until it is pulled."""
        name_message(reply, f"reply to {message.metadata.message_id}")
        self._answered[message.metadata.message_id] = reply


def _ready(references: Sequence[Any], seconds: float) -> list[Any]:
    if not references:
        return []
    wanted = 1 if seconds else len(references)
    return list(ray.wait(list(references), num_returns=wanted, timeout=seconds)[0])


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code=code, reason=reason), reply_to=message)


def _expired(message: Message, now: float) -> bool:
    return message.metadata.created_at + message.metadata.ttl <= now
