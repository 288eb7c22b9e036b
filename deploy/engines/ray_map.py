"""A map on Ray: one item a core, of this machine or of a cluster, results in order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import ray

from metaleak.attacks.work import Item, Map, Result
from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.engines.ray_start import check_ray, gpus_each, start_ray, stop_ray

_TRIES_AGAIN = 1
_LOOK_SECONDS = 1.0


@contextmanager
def ray_map(settings: EngineSettings, go_on: str) -> Iterator[Map]:
    """Start Ray, or join the cluster of `settings`, and yield a map on its cores, which ends with the block.

    What an item raises is raised here; an item whose process died is tried once more. `go_on` says in one line how
    to go on where Ray itself has died.
    """
    with redirect_stdout(StringIO()):
        try:
            cores = start_ray(settings)
            share = gpus_each(settings, cores)

            def on_ray(function: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]:
                remote: Any = ray.remote(num_cpus=1, num_gpus=share, max_retries=_TRIES_AGAIN)(function)
                waiting = [remote.remote(item) for item in items]
                for reference in waiting:
                    while not ray.wait([reference], timeout=_LOOK_SECONDS)[0]:
                        check_ray(go_on)
                    yield ray.get(reference)

            yield on_ray
        finally:
            stop_ray()
