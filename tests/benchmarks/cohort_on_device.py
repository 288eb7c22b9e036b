"""A cohort's meta-gradients on a device, compared with the bare arithmetic of `torch.func` on it.

    python tests/benchmarks/cohort_on_device.py [--device cuda] [--chunks 128 512 1024] [--repeats 7]

MLP 784-64-64-5 with 1 000 learners and Conv4-32 with 64, on synthetic images. `bare` is `vmap` of the rule over
episodes that are on the device already, in the fastest chunk. `cohort` is what a node computes for its learners,
including their episodes from its data, in the fastest chunk. `message` also writes the gradients as the reply's
arrays into the processor's memory. The three take turns in every repeat; the numbers are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import CONV4, MLP, experiment, show
from torch.func import vmap

from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.episode import Episode
from metaleak.clients.shard import episodes
from metaleak.clients.wire.stacked_arrays import StackedArrays


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64, 128, 512, 1024])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [
        _row(name, shape, learners, given.chunks, given.repeats, torch.device(given.device))
        for name, shape, learners in (("MLP 64-64", MLP, 1000), ("Conv4-32", CONV4, 64))
    ]
    show(rows, given.json)


def _row(
    name: str, shape: dict[str, Any], learners: int, chunks: list[int], repeats: int, device: torch.device
) -> dict[str, Any]:
    federation = experiment(shape, learners, 1, recorded=False).federation()
    numbers = list(range(learners))
    parameters = {key: value.to(device) for key, value in federation.initial_parameters().items()}
    drawn = [learner.drawn(1) for learner in federation.learners(numbers)]
    everything = Episode(*(part.to(device) for part in episodes(federation.examples(), drawn)))

    def bare(chunk: int) -> None:
        def one(episode: Episode) -> object:
            return federation.rule.meta_gradient(federation.model, parameters, episode)

        for start in range(0, learners, chunk):
            vmap(one)(Episode(*(part[start : start + chunk] for part in everything)))

    def cohort(chunk: int) -> object:
        return cohort_meta_gradients(federation.learners(numbers), parameters, 1, chunk)

    def message(chunk: int) -> None:
        stack = StackedArrays(learners, like=parameters)
        for start in range(0, learners, chunk):
            some = federation.learners(numbers[start : start + chunk])
            stack.append(cohort_meta_gradients(some, parameters, 1, chunk)[0])
        stack.record()

    kinds: dict[str, Callable[[int], object]] = {"bare": bare, "cohort": cohort, "message": message}
    best = {kind: _best(do, [one for one in chunks if one <= learners], device) for kind, do in kinds.items()}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, do in kinds.items():
            times[kind].append(_seconds(do, best[kind], device))
    medians = {kind: statistics.median(found) for kind, found in times.items()}
    row = {"model": name, "learners": learners, "device": str(device)}
    row |= {f"{kind}, ms (chunk)": f"{1e3 * medians[kind]:.1f} ({best[kind]})" for kind in kinds}
    row |= {f"bare / {kind}": f"{medians['bare'] / medians[kind]:.2f}" for kind in ("cohort", "message")}
    return row


def _best(do: Callable[[int], object], chunks: list[int], device: torch.device) -> int:
    """Return the fastest of the chunk sizes, each tried twice, the second time measured."""
    found = {}
    for chunk in chunks:
        do(chunk)
        found[chunk] = _seconds(do, chunk, device)
    return min(found, key=lambda chunk: found[chunk])


def _seconds(do: Callable[[int], object], chunk: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    do(chunk)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
