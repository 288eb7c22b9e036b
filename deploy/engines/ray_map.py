"""A parallel map on Ray, one item per core of this machine or of a cluster, with results in order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import ray

from metaleak.attacks.work import Item, Map, Result
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.engines.ray_start import check_ray, gpus_each, start_ray, stop_ray

_TRIES_AGAIN = 1
_LOOK_SECONDS = 1.0


@contextmanager
def ray_map(settings: EngineSettings, go_on: str) -> Iterator[Map]:
    """Yield a map over the cores of this machine, or of the cluster in `settings`, that can be used inside the block.

    Ray is started, or the cluster joined, when the map first has items to process. An exception from an item is
    raised here; an item whose process died is retried once. `go_on` is one line that says how to continue if Ray
    itself has died; it ends the message of the `RuntimeError` that is then raised.
    """
    cores: list[int] = []

    def on_ray(function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
        if items and not cores:
            with redirect_stdout(StringIO()):
                cores.append(start_ray(settings))
        waiting: list[Any] = []
        if items:
            share = gpus_each(settings, cores[0])
            remote: Any = ray.remote(num_cpus=1, num_gpus=share, max_retries=_TRIES_AGAIN)(_worked)
            stored = ray.put(function)
            waiting = [remote.remote(stored, item) for item in items]
        for reference in waiting:
            while not ray.wait([reference], timeout=_LOOK_SECONDS)[0]:
                check_ray(go_on)
            yield ray.get(reference)

    try:
        yield on_ray
    finally:
        if cores:
            stop_ray()


def _worked(function: Callable[[Item], Result], item: Item) -> Result:
    keep_freed_memory()
    return function(item)
