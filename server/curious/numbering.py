"""Which learner a reply belongs to: the one whose number it states, or else its node."""

import re
from collections.abc import Mapping, Sequence

from metaleak.clients.wire.answer import Refused
from metaleak.server.record.layout import AGGREGATE

IDENTITIES = ("partition-id", "partition_id", "client-id", "client_id", "cid")
"""The names under which replies state their learner by default; the first that a reply has counts."""
_DIGITS = re.compile(r"[0-9]{1,18}")


class Numbering:
    """Numbers the learners of an application whose messages do not name learners.

    A reply that states a whole number >= 0 under `identity`, or under one of `IDENTITIES`, belongs to that learner,
    whichever node it comes from. Any other reply belongs to its node, which gets the next free number when it first
    answers. The same holds where the stated number is not usable: it is not a whole number >= 0, another node stated
    it in the same round, or it is already the number of another node; `number` returns the reason.
    """

    def __init__(self, identity: str | None = None) -> None:
        if identity is not None and (not isinstance(identity, str) or not identity):
            raise ValueError(f"identity must be a name such as 'partition-id', got {identity!r}")
        self._required = identity
        self._keys = IDENTITIES if identity is None else (identity,)
        self._arrived: dict[str, int] = {}
        self._node_of: dict[int, str] = {}
        self._named: set[int] = set()
        self._next = 0

    def number(self, node: str, stated: Mapping[str, object], taken: Mapping[int, str]) -> tuple[int, str]:
        """Return the learner of a reply and, if the number that it states is not used, the reason.

        `taken` are the learners that have answered in the round so far, each with its node.
        """
        key = next((key for key in self._keys if key in stated), None)
        learner = None if key is None else _natural(stated[key])
        if key is None:
            reason = "" if self._required is None else f"states no {self._required!r}"
        elif learner is None:
            reason = f"states a {key!r} that is not a whole number >= 0"
        elif taken.get(learner, node) != node:
            reason = f"states a {key!r} that another node has stated in the same round"
        elif self._node_of.get(learner, node) != node:
            reason = f"states a {key!r} that is already the number of another node"
        else:
            self._named.add(learner)
            return learner, ""
        return self._by_arrival(node), reason

    def claim(self, node: str, learners: Sequence[int]) -> None:
        """Note the learners that a reply names; raises `Refused` when one is the number of another node."""
        if any(self._node_of.get(learner, node) != node for learner in learners):
            raise Refused("names a learner that is the number of another node")
        self._named.update(learners)

    def _by_arrival(self, node: str) -> int:
        if node not in self._arrived:
            while self._next in self._named or self._next in self._node_of:
                self._next += 1
            self._arrived[node] = self._next
            self._node_of[self._next] = node
        return self._arrived[node]


def _natural(stated: object) -> int | None:
    """Return the whole number >= 0 that was stated, also as a text or as a float; `None` for anything else."""
    if isinstance(stated, str):
        stated = int(stated) if _DIGITS.fullmatch(stated) else None
    if isinstance(stated, float) and stated.is_integer():
        stated = int(stated)
    if isinstance(stated, bool) or not isinstance(stated, int) or not 0 <= stated < AGGREGATE:
        return None
    return int(stated)
