"""Shadow models per minute: on Ray with all cores, compared with a plain loop in one process.

    python tests/benchmarks/shadow_models_speed.py deploy/experiments/pretraining-cifar10.yaml --models 8 --turns 3

Both are timed in turn, from an empty folder, without the start of Ray and the loading of the data. Where the machine
has other work, the seconds say little: so the processor seconds stand beside them, those that a model takes in its
process, and those of all of Ray's other processes in a second of the clock. What cores with nothing else to do would
gain is computed of both.

With `--stacked` all models are trained side by side in this process (`vmap`) in the place of Ray, as on a GPU.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from metaleak.attacks.work import Work, map_here
from metaleak.deploy.engines.cores import usable_cores
from metaleak.deploy.engines.ray_map import ray_map
from metaleak.deploy.pretraining.reading import read_study
from metaleak.deploy.pretraining.shadow_models import make_models


class Took(NamedTuple):
    """What making models took: `seconds`, processor seconds of the `models`, and of Ray's `others`."""

    seconds: float
    models: float
    others: float


def processor_seconds() -> dict[bool, float]:
    """Return the processor seconds so far of what makes models (this process, Ray's workers), and of the rest."""
    parents, taken, making = {}, {}, {os.getpid(): True}
    for entry in Path("/proc").iterdir():
        try:
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if not entry.name.isdecimal():
            continue
        numbers = rest.split()
        parents[int(entry.name)] = int(numbers[1])
        taken[int(entry.name)] = (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
        making.setdefault(int(entry.name), name in ("ray::make", "ray::IDLE"))
    ours = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {kind: sum(taken[one] for one in ours if making[one] == kind) for kind in (True, False)}


def made(study, spread) -> Took:
    with tempfile.TemporaryDirectory() as folder:
        began, before = time.monotonic(), processor_seconds()
        make_models(study, Path(folder), Work(0, None, spread))
        seconds, after = time.monotonic() - began, processor_seconds()
        return Took(seconds, after[True] - before[True], after[False] - before[False])


def shortened(study):
    """Return what loads the data and whatever else is loaded once."""
    short = study.pretraining.model_copy(update={"epochs": 1})
    return study.model_copy(update={"models": 4, "pretraining": short})


def stacked(function, jobs):
    """Make the models of all jobs as one."""
    numbers = tuple(number for job in jobs for number in job.models)
    yield function(replace(jobs[0], models=numbers))


def against_stacked(study, turns: int) -> None:
    made(shortened(study), map_here)
    ratios = []
    for _ in range(turns):
        here, together = made(study, map_here), made(study, stacked)
        ratios.append(here.models / together.models)
        print(
            f"loop {here.models / study.models:.2f} processor seconds a model, side by side "
            f"{together.models / study.models:.2f}: {ratios[-1]:.2f} times",
            flush=True,
        )
    print(f"median {median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")


def main(given: argparse.Namespace) -> None:
    changes = [] if given.models is None else [f"models={given.models}"]
    study = read_study(given.study, (*changes, *given.set))
    if given.stacked:
        against_stacked(study, given.turns)
        return
    cores = usable_cores()
    measured, computed = [], []
    with ray_map(study.engine, "begin again") as on_ray:
        for spread in (map_here, on_ray):
            made(shortened(study), spread)
        for _ in range(given.turns):
            here, there = made(study, map_here), made(study, on_ray)
            measured.append(here.seconds / there.seconds)
            beside = there.others / there.seconds
            # What Ray's other processes take of a second is taken from the cores.
            computed.append((cores - beside) * here.models / there.models)
            print(
                f"loop {60 * study.models / here.seconds:.1f} models a minute, "
                f"{here.models / study.models:.2f} processor seconds each; "
                f"Ray {60 * study.models / there.seconds:.1f}, {there.models / study.models:.2f}, "
                f"and {beside:.3f} a second beside: {measured[-1]:.2f} times, "
                f"on {cores} cores with nothing else to do {computed[-1]:.2f}",
                flush=True,
            )
    print(
        f"median {median(measured):.2f} times (load {os.getloadavg()[0]:.1f}); on {cores} cores with nothing else to "
        f"do {median(computed):.2f} ({min(computed):.2f} to {max(computed):.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--models", type=int, help="in the place of the study's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change of the study")
    parser.add_argument("--stacked", action="store_true", help="against models side by side, and not on Ray")
    parser.add_argument("--turns", type=int, default=3)
    main(parser.parse_args())
