"""How many episodes are computed at once: measured once for each model, rule and machine, and remembered.

A chunk of one episode is computed in a plain loop, larger ones by `vmap`. On a CPU an MLP is fastest in large chunks,
and a wide convolution in chunks of few or one, because `vmap` turns it into a grouped convolution. The chunk decides
the last bits of every number, so a run writes it down to get the same bits again.
"""

import hashlib
import json
import platform
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metaleak.clients.datasets.cache import cache_directory
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.federation import Federation
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.clients.rules import batch_meta_gradients
from metaleak.clients.rules.memory import memory_share
from metaleak.clients.shard import episodes

CHUNKS = (1, 4, 16, 32, 64, 128)
"""The choices; powers of two, in which learners are also summed."""

_METHODS = "loop, vmap, own span, kept memory"
"""The methods of `batch_meta_gradients`, part of the cache's key: measurements of other methods do not apply."""

_WORTH = 0.95
"""A larger chunk, which takes more memory, is chosen only if it needs at most this fraction of the time."""


def measured_chunk(
    federation: Federation, device: torch.device, memory: int | None = None, seconds: float = 3.0
) -> int:
    """Return how many episodes of `federation` are best computed at once on `device`, one of `CHUNKS`.

    No choice needs more than `memory` bytes; the default is a quarter of this machine's, or half of the GPU's,
    divided by the cores. Measuring goes on for about `seconds`; the result is remembered in the user's cache
    directory, for this machine, torch, model, rule, task and image shape.
    """
    if any(defense.place in ("inner", "example") for defense in federation.defenses):
        return 1
    every = {name: value.to(device) for name, value in federation.initial_parameters().items()}
    model, parameters = federation.computed(every)
    federation = replace(federation, model=model)
    memory = memory_share(device) if memory is None else memory
    key = _key(federation, parameters, device, memory)
    for known in CHUNKS:
        if _remembered().get(key) == known:
            return known
    chosen = _measured(federation, parameters, device, memory, seconds)
    _remember(key, chosen)
    return chosen


def bytes_per_episode(federation: Federation, parameters: Parameters) -> int:
    """Return the bytes of all intermediate tensors of one episode's meta-gradient: an upper bound of its memory."""
    batch = _batch(federation, parameters, 1)
    with _Allocations() as allocations:
        batch_meta_gradients(federation.model, federation.rule, parameters, batch)
    return int(allocations.bytes)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that operations inside the block return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and not value._is_view():
                self.bytes += value.numel() * value.element_size()
        return result


def _measured(
    federation: Federation, parameters: Parameters, device: torch.device, memory: int, seconds: float
) -> int:
    # As the nodes do whose time is measured.
    keep_freed_memory()
    affordable = max(1, memory // max(1, bytes_per_episode(federation, parameters)))
    batches = {chunk: _batch(federation, parameters, chunk) for chunk in CHUNKS if chunk <= affordable}
    times: dict[int, float] = {}
    end = time.monotonic() + seconds
    # In turns, so that a busy moment of the machine affects all choices; the first turn warms up.
    for turn in range(6):
        for chunk, batch in batches.items():
            if turn > 0 and time.monotonic() > end:
                break
            measured = _seconds(federation, parameters, batch, device) / chunk
            times[chunk] = min(measured, times.get(chunk, float("inf")))
            if turn == 0 and (times[chunk] > 2 * min(times.values()) or time.monotonic() > end):
                # Larger ones would only be slower.
                batches = {size: kept for size, kept in batches.items() if size < chunk}
                break
    best = 1
    for chunk in batches:
        if times[chunk] < _WORTH * times[best]:
            best = chunk
    return best


def _seconds(federation: Federation, parameters: Parameters, batch: Episode, device: torch.device) -> float:
    """Return the seconds of one batch: on a CPU this thread's processor time, for others may be running."""
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    start = clock()
    batch_meta_gradients(federation.model, federation.rule, parameters, batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _batch(federation: Federation, parameters: Parameters, count: int) -> Episode:
    """Return `count` episodes, of as many learners as there are."""
    device = next(iter(parameters.values())).device
    learners = len(federation.split().shards)
    drawn = [learner.drawn(1) for learner in federation.learners([number % learners for number in range(count)])]
    first = [one.parts(federation.task.episodes_per_message)[0] for one in drawn]
    return Episode(*(part.to(device) for part in episodes(federation.examples(), first)))


def _key(federation: Federation, parameters: Parameters, device: torch.device, memory: int) -> str:
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    decides = (
        _METHODS,
        repr(federation.model),
        repr(federation.rule),
        repr(federation.task),
        repr(federation.examples().input_shape),
        repr(shapes),
        torch.__version__,
        device.type,
        where,
        str(memory),
    )
    return hashlib.blake2b(repr(decides).encode(), digest_size=12).hexdigest()


@lru_cache(maxsize=1)
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _file() -> Path:
    return cache_directory() / "chunks.json"


def _remembered() -> dict[str, object]:
    try:
        known = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(key: str, chunk: int) -> None:
    """Store a choice in the cache, if that can be written."""
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".chunks-{key}.part")
        beside.write_text(json.dumps({**_remembered(), key: chunk}))
        beside.replace(file)
    except OSError:
        pass
