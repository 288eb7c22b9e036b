"""Tasks per second on one core: MAML of TorchOpt or learn2learn in a plain loop over tasks, and of metaleak.

Both compute the second-order meta-gradient of every task, in float32, with the same parameters and images:

    mlp    784-64-64-5, 5-way 1-shot 1-query, one inner step
    conv4  four blocks of 32 filters, 5-way 5-shot 15-query, five inner steps

The other library has its tasks ready in memory. metaleak's side is the public `cohort_meta_gradients`, which also
draws the learners' episodes from their shards and stacks the results, in chunks of the size that a simulation
measures and chooses. The meta-gradients of all tasks are compared.

    python -m venv X && X/bin/pip install torch torchopt
    python tests/benchmarks/against_torchopt.py --rival-python X/bin/python

`--library learn2learn` compares with learn2learn instead; its last release, 0.2.0, builds on Python 3.10 and older.
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from alternating import (
    HERE,
    alternating,
    arguments,
    has_module,
    in_words,
    listed,
    machine,
    main_of,
    run_side,
    show,
    spread,
)

from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.federation import Federation
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.clients.models import MLP, Conv4, Model
from metaleak.clients.partition import Partition, TaskShape
from metaleak.clients.rules import MAML
from metaleak.deploy.simulate.measured_chunk import measured_chunk


class Case(NamedTuple):
    """What is compared."""

    model: Model
    task: TaskShape
    rule: MAML
    tasks: int

    def federation(self, tasks: int) -> Federation:
        """Return `tasks` learners, each with the images of one task."""
        return Federation(
            seed=0,
            data=EmbeddedMNIST(),
            task=self.task,
            partition=Partition(learners=tasks, held_out=0.0, non_members=0.0),
            model=self.model,
            rule=self.rule,
        )


CASES = {
    "mlp": Case(MLP(), TaskShape(ways=5, shots=1, queries=1), MAML(inner_steps=1, inner_rate=0.4), 256),
    "conv4": Case(Conv4(), TaskShape(ways=5, shots=5, queries=15), MAML(inner_steps=5, inner_rate=0.1), 32),
}


def write_inputs(path: Path, case: Case, tasks: int) -> None:
    """Write what the other library needs to compute the same: every task, and the initial parameters."""
    federation = case.federation(tasks)
    episodes = [federation.learner(number).episode(1) for number in range(tasks)]
    names = ("support", "support_labels", "query", "query_labels")
    stacked = {
        name: torch.stack(parts).numpy() for name, parts in zip(names, zip(*episodes, strict=True), strict=True)
    }
    initial = {f"initial/{name}": value.numpy() for name, value in federation.initial_parameters().items()}
    np.savez(path, **stacked, **initial)


def our_side(case: Case, tasks: int, passes: int, result: Path) -> None:
    """Compute all learners' meta-gradients `passes` times, and write the seconds of each; time drawing alone, too."""
    torch.set_num_threads(1)
    keep_freed_memory()
    federation = case.federation(tasks)
    parameters = federation.initial_parameters()
    learners = [federation.learner(number) for number in range(tasks)]
    # What a simulation does when it is not told: it measures how many learners are best computed at once.
    chunk = measured_chunk(federation, torch.device("cpu"))

    # The first pass warms up, and is what is compared.
    gradients, _ = cohort_meta_gradients(learners, parameters, 1, chunk)
    np.savez(result.with_suffix(".npz"), **{name: value.numpy() for name, value in gradients.items()})
    del gradients
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        cohort_meta_gradients(learners, parameters, 1, chunk)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    for learner in learners:
        learner.episode(1)
    drawing = time.perf_counter() - started
    versions = {name: version(name) for name in ("metaleak", "torch")}
    result.write_text(json.dumps({"seconds": seconds, "drawing": drawing, "chunk": chunk, "versions": versions}))


def relative_difference(ours: Path, theirs: Path) -> float:
    """Return the greatest difference of a task's meta-gradients, relative to that gradient's norm."""
    mine, other = (
        np.concatenate([part.reshape(len(part), -1) for part in np.load(path).values()], axis=1).astype(np.float64)
        for path in (ours, theirs)
    )
    return float((np.linalg.norm(mine - other, axis=1) / np.linalg.norm(other, axis=1)).max())


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run both sides in turn, model by model, and print what was measured."""
    repeats = 1 if options.quick else options.repeats
    rows = [_compare_one(name, options, repeats, folder) for name in options.models]
    outcome = {
        "unit": "tasks/s",
        "library": options.library,
        "repeats": repeats,
        "passes": options.passes,
        "quick": options.quick,
        "rows": rows,
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(outcome, indent=2))
        return
    show(
        f"tasks/s on one core, median of {repeats} runs of {options.passes} passes (least to greatest)",
        (
            "model",
            options.library,
            "metaleak",
            "ratio",
            "chunk",
            "drawing alone",
            "gradients differ by",
        ),
        [
            (
                f"{row['model']}, {row['tasks']} tasks",
                in_words(row[options.library]),
                in_words(row["metaleak"]),
                f"{row['ratio']:.2f}",
                ", ".join(str(chunk) for chunk in row["chunks"]),
                f"{row['drawing']:.0%}",
                f"{row['relative_difference']:.1g}",
            )
            for row in rows
        ],
        [
            *(f"{side}: {listed(of)}" for side, of in rows[0]["versions"].items()),
            listed(machine()),
            *(["a smoke test: the numbers mean nothing"] if options.quick else []),
        ],
    )


def _compare_one(name: str, options: argparse.Namespace, repeats: int, folder: Path) -> dict[str, Any]:
    case = CASES[name]
    tasks = min(case.tasks, 16) if options.quick else case.tasks
    inputs, our_result, their_result = (folder / f"{name}{part}" for part in (".npz", "-ours.json", "-theirs.json"))
    write_inputs(inputs, case, tasks)
    passes = ["--passes", str(options.passes)]

    def theirs() -> dict[str, Any]:
        script = [str(HERE / "against_torchopt_rival.py"), "--library", options.library, "--inputs", str(inputs)]
        rule = ["--steps", str(case.rule.inner_steps), "--rate", str(case.rule.inner_rate)]
        return run_side([options.rival_python, *script, *rule, *passes, "--result", str(their_result)], their_result)

    def ours() -> dict[str, Any]:
        script = [str(HERE / "against_torchopt.py"), "--side", name, "--tasks", str(tasks)]
        return run_side([sys.executable, *script, *passes, "--result", str(our_result)], our_result)

    runs = alternating({f"{options.library}, {name}": theirs, f"metaleak, {name}": ours}, repeats)
    other, mine = runs.values()
    measured = {
        options.library: spread([tasks / median(run["seconds"]) for run in other]),
        "metaleak": spread([tasks / median(run["seconds"]) for run in mine]),
    }
    ratio = measured["metaleak"]["median"] / measured[options.library]["median"]
    return {
        "model": name,
        "tasks": tasks,
        **measured,
        "ratio": ratio,
        "chunks": sorted({run["chunk"] for run in mine}),
        "drawing": median([run["drawing"] / median(run["seconds"]) for run in mine]),
        "relative_difference": relative_difference(our_result.with_suffix(".npz"), their_result.with_suffix(".npz")),
        "versions": {options.library: other[0]["versions"], "metaleak": mine[0]["versions"]},
    }


def main() -> int:
    parser = arguments("Tasks per second: MAML of TorchOpt or learn2learn in a loop, and ours.", repeats=5)
    parser.add_argument("--library", choices=("torchopt", "learn2learn"), default="torchopt")
    parser.add_argument("--rival-python", default=sys.executable, help="the interpreter that has it (default this)")
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--passes", type=int, default=5, help="measured passes over all tasks a run")
    # How the script starts our own side in a process of its own.
    parser.add_argument("--side", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        our_side(CASES[options.side], options.tasks, options.passes, options.result)
        return 0
    if not has_module(options.rival_python, options.library):
        parser.error(f"{options.rival_python} has no {options.library}; the head of this file says how to install it")
    return main_of(lambda folder: compare(options, folder))


if __name__ == "__main__":
    sys.exit(main())
