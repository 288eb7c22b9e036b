"""Where a round's time and bytes go, per learner: in the server, in the actors, and in Ray's other processes.

    python tests/benchmarks/round_profile.py mlp-64                    # 1 000 learners, recording on and off
    python tests/benchmarks/round_profile.py mlp-256 conv4 --rounds 6

Three tables a model. What a node does, in this process and alone: drawing, arithmetic, and summing or writing, with
the bare computation of the same chunks beside it. What the server's thread does in a whole round on Ray's actors. And
the processor time, the page faults and the bytes of each kind of process, from /proc, between the third round and the
last but one: processor time says the same on a busy machine, where wall time does not.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measuring import CONV4, MLP, experiment, show

from metaleak.clients import app, cohort
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.clients.rules import batch_meta_gradients
from metaleak.clients.wire.reply_file import ReplyFile
from metaleak.clients.wire.summed_arrays import SummedArrays
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.engines.cores import usable_cores
from metaleak.deploy.simulate import launch, simulation
from metaleak.server.curious.recorder import Recorder
from metaleak.server.curious.watched_grid import WatchedGrid
from metaleak.server.learning.gathered import Gathered
from metaleak.server.learning.meta_learner import MetaLearner
from metaleak.server.learning.optimizer import OuterSteps

MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "mlp-64": (MLP, 1000),
    "mlp-256": ({**MLP, "model": {"name": "mlp", "hidden": [256, 256]}}, 400),
    "conv4": (CONV4, 32),
}
_TICK = os.sysconf("SC_CLK_TCK")


class Spans:
    """Seconds spent in functions, by label, without what other labeled functions took inside them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: Counter[str] = Counter()
        self._clock = clock
        self._inside: list[float] = []

    @contextmanager
    def named(self, label: str) -> Iterator[None]:
        """Count what the block takes under `label`."""
        began = self._clock()
        self._inside.append(0.0)
        try:
            yield
        finally:
            took = self._clock() - began
            self.seconds[label] += took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took

    def watch(self, place: Any, name: str, label: str) -> Callable[[], None]:
        """Count the calls of a function under `label`; return what undoes that."""
        function = getattr(place, name)

        def watched(*given: Any, **named: Any) -> Any:
            with self.named(label):
                return function(*given, **named)

        setattr(place, name, watched)
        return lambda: setattr(place, name, function)


def node(asked: Experiment, learners: int, chunk: int, recorded: bool, repeats: int = 5) -> dict[str, float]:
    """Return microseconds a learner of what one node does with a message of `learners`, medians."""
    federation, device = asked.federation(), torch.device("cpu")
    parameters = federation.initial_parameters()
    found: defaultdict[str, list[float]] = defaultdict(list)
    numbers = list(range(learners))

    def taken(round: int, folder: Path) -> Spans:
        spans = Spans(time.perf_counter)
        undo = [
            spans.watch(cohort, "_batches", "drawing episodes"),
            spans.watch(app, "cohort_in_parts", "arithmetic"),
            spans.watch(app._Gradients, "add", "arithmetic, by parts"),
            spans.watch(SummedArrays, "append", "summing"),
            spans.watch(SummedArrays, "record", "summing"),
            spans.watch(ReplyFile, "__init__", "writing"),
            spans.watch(ReplyFile, "append", "writing"),
            spans.watch(ReplyFile, "record", "writing"),
        ]
        try:
            with spans.named("the rest of an answer"):
                message = app._Asked(numbers, round, chunk, parameters, None if recorded else 0)
                app._answer(federation, message, device, folder if recorded else None)
        finally:
            for one in reversed(undo):
                one()
        return spans

    with tempfile.TemporaryDirectory() as folder:
        for round in range(repeats + 2):
            bare = _bare(federation, numbers, parameters, chunk)
            spans = taken(round, Path(folder))
            for file in Path(folder).iterdir():
                file.unlink()
            if round >= 2:
                found["bare computation"].append(bare)
                for label, seconds in spans.seconds.items():
                    found[label.removesuffix(", by parts")].append(seconds)
                if "arithmetic, by parts" in spans.seconds:
                    found["arithmetic"][-2:] = [sum(found["arithmetic"][-2:])]
    return {label: 1e6 * statistics.median(seconds) / learners for label, seconds in found.items()}


def _bare(federation: Any, numbers: list[int], parameters: Any, chunk: int) -> float:
    parts = [numbers[start : start + chunk] for start in range(0, len(numbers), chunk)]
    batches = [cohort._batches(federation.learners(part), parameters, 1)[0] for part in parts]
    began = time.perf_counter()
    for batch in batches:
        batch_meta_gradients(federation.model, federation.rule, parameters, batch)
    return time.perf_counter() - began


class Processes:
    """What this process and all that it started have taken so far, by kind."""

    def __init__(self) -> None:
        self.taken: defaultdict[str, Counter[str]] = defaultdict(Counter)
        found, parents = {}, {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                after = (process / "stat").read_text().rpartition(") ")[2].split()
                title = (process / "cmdline").read_bytes()
                written = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
            except (OSError, ValueError):
                continue
            parents[int(process.name)] = int(after[1])
            seconds = (int(after[11]) + int(after[12])) / _TICK
            found[int(process.name)] = title, seconds, int(after[7]), int(written["wchar"]), int(written["rchar"])
        for number, (title, seconds, faults, out, read) in found.items():
            ancestor = number
            while ancestor not in (os.getpid(), 0, 1):
                ancestor = parents.get(ancestor, 0)
            if ancestor != os.getpid():
                continue
            actor = title.startswith(b"ray::ClientAppActor")
            kind = "server" if number == os.getpid() else "actors" if actor else "Ray's others"
            self.taken[kind].update({"seconds": seconds, "faults": faults, "out": out, "in": read})


def whole(asked: Experiment, learners: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return microseconds a learner of what the server's thread does in a round, and one row per kind of process."""
    spans, first, ends, before = Spans(time.perf_counter), list[float](), list[float](), list[Processes]()
    rounds, waits = asked.server.rounds, WatchedGrid.await_replies
    began: list[float] = []

    def round_of(self: Any, round: int, *given: Any) -> Any:
        if round == 3:
            spans.seconds.clear()
            before.append(Processes())
        began.append(time.perf_counter())
        with spans.named("the rest: outer step, checkpoint, metrics"):
            return done_round(self, round, *given)

    def waited(self: Any, *given: Any) -> None:
        # Of two grids around one another, the outer one's wait is the inner one's too.
        with spans.named("waiting for replies" if len(first) == len(began) else "waiting for the first reply"):
            waits(self, *given)

    def taken(self: Any, *given: Any) -> None:
        if len(first) < len(began):
            first.append(time.perf_counter() - began[-1])
        with spans.named("checking and adding up"):
            take(self, *given)

    done_round, take = MetaLearner._round, Gathered.take
    undo = [
        spans.watch(WatchedGrid, "push_messages", "sending messages"),
        spans.watch(WatchedGrid, "pull_messages", "receiving replies"),
        spans.watch(Recorder, "_guarded", "recording"),
        spans.watch(Gathered, "mean", "checking and adding up"),
        spans.watch(OuterSteps, "step", "the rest: outer step, checkpoint, metrics"),
    ]
    MetaLearner._round, WatchedGrid.await_replies, Gathered.take = round_of, waited, taken  # type: ignore[assignment,method-assign]
    after: list[Processes] = []

    def on_round(done: Any) -> None:
        ends.append(time.perf_counter())
        if done.round == rounds - 1:
            after.append(Processes())

    try:
        with tempfile.TemporaryDirectory() as folder:
            launch.simulate(asked, Path(folder) / "run", on_round)
    finally:
        MetaLearner._round, WatchedGrid.await_replies, Gathered.take = done_round, waits, take  # type: ignore[method-assign]
        for one in reversed(undo):
            one()
    each = 1e6 / learners / (rounds - 2)
    seconds = {label: each * value for label, value in spans.seconds.items()}
    seconds["a round"] = 1e6 / learners * statistics.median(b - a for a, b in pairwise(ends[1:-1]))
    each = 1e6 / learners / (rounds - 3)
    rows = []
    for kind, now in after[0].taken.items():
        used = {key: now[key] - before[0].taken[kind][key] for key in now}
        rows.append(
            {
                "process": kind,
                "processor, µs": each * used["seconds"],
                "page faults": used["faults"] / learners / (rounds - 3),
                "KB written": used["out"] / 1e3 / learners / (rounds - 3),
                "KB read": used["in"] / 1e3 / learners / (rounds - 3),
            }
        )
    return seconds, rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--learners", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for name in given.models:
        shape, usual = MODELS[name]
        learners = given.learners or usual
        by_kind: dict[bool, tuple[dict[str, float], dict[str, float], list[dict[str, Any]]]] = {}
        for recorded in (True, False):
            asked = experiment(shape, learners, given.rounds, recorded, actors=usable_cores())
            chunk = simulation.chosen_chunk(simulation.prepared(asked), None)
            alone = node(asked, max(1, min(learners // 4, 256)), chunk, recorded)
            by_kind[recorded] = alone, *whole(asked, learners)
        print(f"{name}, {learners} learners, chunk {chunk}: microseconds a learner")
        for part, title in ((0, "a node, alone"), (1, "the server's thread, wall time")):
            both = [by_kind[True][part], by_kind[False][part]]
            rows = [
                {title: label, "recorded": both[0].get(label, 0.0), "not recorded": both[1].get(label, 0.0)}  # type: ignore[union-attr]
                for label in dict.fromkeys((*both[0], *both[1]))
            ]
            show(rows, given.json)
        show(
            [
                {"replies": "recorded" if recorded else "not recorded", **row}
                for recorded in (True, False)
                for row in by_kind[recorded][2]
            ],
            given.json,
        )


if __name__ == "__main__":
    main()
