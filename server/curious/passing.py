"""A message as the recorder sees it pass, whichever of Flower's interfaces it passes through."""

from collections.abc import Hashable
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, RecordDict


@dataclass(frozen=True)
class Sent:
    """A message of type `kind` to `node`, which its answer calls `name`; of `round`, where that is known."""

    name: Hashable
    node: str
    kind: str
    content: RecordDict
    round: int | None = None


@dataclass(frozen=True)
class Received:
    """What `node` answers to the message called `name`; no content is an error."""

    name: Hashable
    node: str
    kind: str
    content: RecordDict | None


def sent(message: Message) -> Sent:
    """Return a message that got its id as what is sent."""
    about = message.metadata
    return Sent(about.message_id, str(about.dst_node_id), about.message_type, message.content)


def received(reply: Message) -> Received:
    """Return a reply as what is received."""
    about = reply.metadata
    content = None if reply.has_error() else reply.content
    return Received(about.reply_to_message_id, str(about.src_node_id), about.message_type, content)


def same_arrays(left: list[ArrayRecord], right: list[ArrayRecord]) -> bool:
    """Return whether array records hold the same bytes; of those that are one object none is looked at."""
    return len(left) == len(right) and all(
        one is other
        or (list(one) == list(other) and all(_same_bytes(one[name].data, other[name].data) for name in one))
        for one, other in zip(left, right, strict=True)
    )


def _same_bytes(left: object, right: object) -> bool:
    return left is right or (isinstance(left, bytes) and isinstance(right, bytes) and left == right)
