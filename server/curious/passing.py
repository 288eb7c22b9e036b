"""Messages and replies in one form for the recorder, whichever of Flower's interfaces they come from."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict

from metaleak.clients.wire.answer import statements
from metaleak.clients.wire.flower_private import ClientProxy, Code, FitIns, FitRes, Parameters

_Result = TypeVar("_Result")
Failure = tuple[ClientProxy, _Result] | BaseException
"""What a classic strategy gets for a client that failed."""


@dataclass(frozen=True)
class Sent:
    """A message of type `kind` to `node`, with the `name` by which its reply refers to it; `round` if it is known.

    `stated` are the values beside the arrays of its `content`.
    """

    name: Hashable
    node: str
    kind: str
    content: RecordDict
    stated: Mapping[str, object]
    round: int | None = None


@dataclass(frozen=True)
class Received:
    """The reply of `node` to the message called `name`; without content it is an error."""

    name: Hashable
    node: str
    kind: str
    content: RecordDict | None
    stated: Mapping[str, object]


def sent(message: Message) -> Sent:
    """Return a Flower message that has its id as a `Sent`."""
    about = message.metadata
    content = message.content
    stated, round = statements(content), _declared_round(content)
    return Sent(about.message_id, str(about.dst_node_id), about.message_type, content, stated, round)


def received(reply: Message) -> Received:
    """Return a Flower reply as a `Received`."""
    about = reply.metadata
    content = None if reply.has_error() else reply.content
    stated = {} if content is None else statements(content)
    return Received(about.reply_to_message_id, str(about.src_node_id), about.message_type, content, stated)


def sent_instructions(round: int, instructions: Iterable[tuple[ClientProxy, FitIns]]) -> Iterator[Sent]:
    """Yield the instructions of a classic strategy to its clients as `Sent`."""
    for client, told in instructions:
        yield Sent((round, client.cid), client.cid, MessageType.TRAIN, _content(told.parameters), told.config, round)


def received_results(
    round: int, results: Iterable[tuple[ClientProxy, FitRes]], failures: Iterable[Failure[FitRes]]
) -> Iterator[Received]:
    """Yield the results of a classic strategy's clients as `Received`."""
    for client, result in (*results, *(failure for failure in failures if isinstance(failure, tuple))):
        content = _content(result.parameters) if result.status.code == Code.OK else None
        stated = {**(result.metrics or {}), "num_examples": result.num_examples}
        yield Received((round, client.cid), client.cid, MessageType.TRAIN, content, stated)


def _declared_round(content: RecordDict) -> int | None:
    for config in content.config_records.values():
        value = config.get("server-round")
        if type(value) is int and value >= 0:
            return value
    return None


def _content(parameters: Parameters) -> RecordDict:
    """Return a classic strategy's list of arrays with the names `0`, `1` and so on, as Flower's own workflow does."""
    arrays = ArrayRecord()
    for number, tensor in enumerate(parameters.tensors):
        arrays[str(number)] = Array(dtype="", shape=(), stype=parameters.tensor_type, data=tensor)
    return RecordDict({"arrays": arrays} if parameters.tensors else {})


def same_arrays(left: list[ArrayRecord], right: list[ArrayRecord]) -> bool:
    """Return whether array records hold the same bytes; identical objects are not compared."""
    return len(left) == len(right) and all(
        one is other
        or (list(one) == list(other) and all(_same_bytes(one[name].data, other[name].data) for name in one))
        for one, other in zip(left, right, strict=True)
    )


def _same_bytes(left: object, right: object) -> bool:
    return left is right or (isinstance(left, bytes) and isinstance(right, bytes) and left == right)
