"""The shares of a round: its learners divided into groups, one message for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Share:
    """Consecutive learners of a round that one message asks for.

    They are at positions `first`, `first + 1`, ... of the round's ascending sample. `host` is the index of the only
    node that hosts them, or `None` when any node may answer.
    """

    first: int
    learners: tuple[int, ...]
    host: int | None = None


def floating_shares(sampled: Sequence[int], count: int, chunk: int, most: int = 64) -> list[Share]:
    """Return about `count` shares that any node may compute, in chunks of `chunk` learners.

    There are more when a share would otherwise have more than `most` learners (or one chunk, if that is larger), and
    fewer when there are not as many chunks. Where a chunk begins depends on the learners only.
    """
    chunks = [sampled[start : start + chunk] for start in range(0, len(sampled), chunk)]
    count = max(min(len(chunks), count), -(-len(sampled) // max(most, chunk)))
    bounds = [len(chunks) * place // count for place in range(count + 1)]
    runs = [[number for part in chunks[start:end] for number in part] for start, end in pairwise(bounds)]
    return _placed([(run, None) for run in runs if run])


def hosted_shares(sampled: Sequence[int], learners_per_node: int) -> list[Share]:
    """Return one share per node: node k hosts the learners from k * `learners_per_node` on."""
    hosts: dict[int, list[int]] = {}
    for number in sampled:
        hosts.setdefault(number // learners_per_node, []).append(number)
    return _placed([(numbers, host) for host, numbers in hosts.items()])


def _placed(runs: list[tuple[list[int], int | None]]) -> list[Share]:
    shares, first = [], 0
    for numbers, host in runs:
        shares.append(Share(first, tuple(numbers), host))
        first += len(numbers)
    return shares
