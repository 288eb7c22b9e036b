"""What an attack that computes for long is given: its seed, whom to tell how far it is, and where to compute."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from metaleak.attacks.attack import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


class Map(Protocol):
    """Applies a function to items that do not depend on one another, here or elsewhere."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        """Yield the results in the items' order; function, items and results must be able to travel."""
        ...


def map_here(function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
    """Apply `function` to one item after the other in this process."""
    return map(function, items)


@dataclass(frozen=True)
class Work:
    """A `seed`, on which all random numbers depend, a `progress` to tell, and a `map` to compute by."""

    seed: int = 0
    progress: Progress | None = None
    map: Map = map_here

    def tell(self, done: int, total: int) -> None:
        """Say how far the attack is."""
        if self.progress is not None:
            self.progress(done, total)
