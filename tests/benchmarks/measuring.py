"""Functions shared by the benchmarks of the engine: rounds timed from outside, the bare computation, a table."""

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import alternating
import torch

from metaleak.clients.episode import Episode
from metaleak.clients.federation import Federation
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.clients.rules import batch_meta_gradients
from metaleak.clients.shard import episodes
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate.launch import simulate
from metaleak.deploy.simulate.measured_chunk import CHUNKS
from metaleak.deploy.simulate.rounds import RoundDone

sys.path.append(str(Path(__file__).parent))

MLP = {"task": {"ways": 5, "shots": 1, "queries": 1}, "model": {"name": "mlp", "hidden": [64, 64]}}
CONV4 = {
    "task": {"ways": 5, "shots": 5, "queries": 15},
    "model": {"name": "conv4", "filters": 32},
    "rule": {"name": "maml", "inner_steps": 5, "inner_rate": 0.1},
}


def experiment(
    shape: dict[str, Any],
    learners: int,
    rounds: int,
    recorded: bool,
    room: int | None = None,
    sampled: int | None = None,
    **engine: Any,
) -> Experiment:
    """Return an experiment on synthetic images in which every learner takes part in every round, or so many of them.

    There are images enough for `room` learners, by default for those that there are.
    """
    task = shape["task"]
    data = {"sliding": True} if sampled else {}
    images = 2 * (room or learners) * task["ways"] * (task["shots"] + task["queries"]) + 4000
    return experiment_from(
        {
            **shape,
            "data": {"name": "synthetic:Synthetic", "images": images, **data},
            "partition": {"learners": learners, "held_out": 0.1, "non_members": 0.0},
            "server": {"rounds": rounds, "fraction": sampled / learners if sampled else 1.0},
            "record": {"rounds": rounds if recorded else 0},
            "evaluation": {"every": 10**6, "tasks": 2, "queries": 1},
            "attacks": [],
            "engine": engine,
        },
        "benchmark",
    )


def round_seconds(asked: Experiment, warm: int = 2, keep: int | None = None) -> tuple[list[float], float]:
    """Return the seconds of each round after the first `warm`, and those from the start to the first round's end.

    A round lasts from the end of the one before to its own, so nothing between rounds is left out. The files are
    written into a temporary folder. With `keep`, of the record only the replies of the last so many rounds stay, see
    `fresh_pages.py`.
    """
    ends: list[float] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        replies = Path(folder) / "run" / "record" / "replies"

        def ended(done: RoundDone) -> None:
            for old in replies.glob(f"{done.round - keep:06d}-*") if keep is not None else ():
                old.unlink()
            ends.append(time.perf_counter())

        simulate(asked, replies.parents[1], ended)
    # The last round also measures the accuracy.
    return [b - a for a, b in pairwise(ends)][warm - 1 : -1], ends[0] - started


class BareComputation:
    """The learners' meta-gradients and nothing else: `workers` processes, their episodes ready in memory.

    The best of all chunk sizes counts.
    """

    def __init__(self, asked: Experiment, learners: int, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for worker in range(workers):
            numbers = list(range(learners * worker // workers, learners * (worker + 1) // workers))
            mine, its = context.Pipe()
            process = context.Process(target=_compute, args=(its, asked, numbers), daemon=True)
            process.start()
            self._processes.append(process)
            self._ends.append(mine)
        for end in self._ends:
            end.recv()
        self.times: dict[int, list[float]] = {}

    def measure(self, chunks: Sequence[int]) -> None:
        """Compute all learners once in each of these chunk sizes, on all workers at once."""
        for chunk in chunks:
            started = time.perf_counter()
            for end in self._ends:
                end.send(chunk)
            for end in self._ends:
                end.recv()
            self.times.setdefault(chunk, []).append(time.perf_counter() - started)

    def best(self) -> tuple[int, float]:
        """Return the best chunk size and its median seconds for all learners."""
        medians = {chunk: statistics.median(times) for chunk, times in self.times.items()}
        chunk = min(medians, key=lambda size: medians[size])
        return chunk, medians[chunk]

    def end(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()


def _compute(connection: Connection, asked: Experiment, numbers: list[int]) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    federation: Federation = asked.federation()
    parameters = federation.initial_parameters()
    drawn = [learner.drawn(1) for learner in federation.learners(numbers)]
    everything = episodes(federation.examples(), drawn)
    connection.send("ready")
    while True:
        chunk = int(connection.recv())
        for start in range(0, len(numbers), chunk):
            batch = Episode(*(part[start : start + chunk] for part in everything))
            batch_meta_gradients(federation.model, federation.rule, parameters, batch)
        connection.send("done")


def fitting(learners: int, workers: int) -> list[int]:
    """Return the chunk sizes that make sense for so many learners."""
    return [chunk for chunk in CHUNKS if chunk <= max(1, learners // workers)]


def show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as a table, or as one JSON list."""
    if as_json:
        print(json.dumps(rows))
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    alternating.show("", names, [[_text(row.get(name, "")) for name in names] for row in rows], [])


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
