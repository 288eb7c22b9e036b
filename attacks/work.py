"""The context of a long-running attack: a seed, a progress callback, and a function that distributes work."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from metaleak.attacks.attack import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


class Map(Protocol):
    """A function that applies another to independent items, in this process or on other machines."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        """Yield the results in the items' order; function, items and results must be picklable."""
        ...


def map_here(function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
    """Apply `function` to one item after the other in this process."""
    return map(function, items)


@dataclass(frozen=True)
class Work:
    """A `seed` for all random numbers, a `progress` callback, and a `map` that distributes computations."""

    seed: int = 0
    progress: Progress | None = None
    map: Map = map_here

    def report(self, done: int, total: int) -> None:
        """Report that `done` of `total` steps are finished."""
        if self.progress is not None:
            self.progress(done, total)
