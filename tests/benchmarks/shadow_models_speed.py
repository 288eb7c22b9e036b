"""Shadow models a minute: on Ray over all cores, against the plain loop in one process.

    python tests/benchmarks/shadow_models_speed.py deploy/experiments/pretraining-cifar10.yaml --models 8 --turns 3

Both are timed in turn, from an empty folder, without the start of Ray and the loading of the data. Beside the ratio
of the seconds, which other work on the machine changes, stands that of the processor seconds that a model takes, of
all processes together, Ray's own included: times the number of cores it is the gain where they have nothing else to
do.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from metaleak.attacks.work import Work, map_here
from metaleak.deploy.engines.cores import usable_cores
from metaleak.deploy.engines.ray_map import ray_map
from metaleak.deploy.pretraining.reading import read_study
from metaleak.deploy.pretraining.shadow_models import make_models


class Took(NamedTuple):
    """What making all models took: `seconds`, and `processor` seconds of this process and all that it started."""

    seconds: float
    processor: float


def processor_seconds() -> float:
    """Return the processor seconds of this process and its descendants that are alive."""
    parents, taken = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            # The name in brackets may have anything in it.
            rest = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(rest[1])
        taken[int(entry.name)] = (int(rest[11]) + int(rest[12])) / os.sysconf("SC_CLK_TCK")
    ours = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(taken.get(one, 0.0) for one in ours)


def made(study, spread) -> Took:
    with tempfile.TemporaryDirectory() as folder:
        began, before = time.monotonic(), processor_seconds()
        make_models(study, Path(folder), Work(0, None, spread))
        return Took(time.monotonic() - began, processor_seconds() - before)


def main(given: argparse.Namespace) -> None:
    changes = [] if given.models is None else [f"models={given.models}"]
    study = read_study(given.study, tuple(changes))
    small = study.model_copy(update={"models": 4, "seed": study.seed + 1})
    ratios, parts = [], []
    with ray_map(study.engine, "begin again") as on_ray:
        for spread in (map_here, on_ray):
            made(small, spread)
        for _ in range(given.turns):
            here, there = made(study, map_here), made(study, on_ray)
            ratios.append(here.seconds / there.seconds)
            parts.append(here.processor / there.processor)
            print(
                f"loop {60 * study.models / here.seconds:.1f} models a minute, "
                f"{here.processor / study.models:.2f} processor seconds each; "
                f"Ray {60 * study.models / there.seconds:.1f}, {there.processor / study.models:.2f}: "
                f"{ratios[-1]:.2f} times as fast, {parts[-1]:.2f} of the loop's work a processor second",
                flush=True,
            )
    cores = usable_cores()
    print(
        f"median {median(ratios):.2f} times as fast, load {os.getloadavg()[0]:.1f}; by processor seconds {cores} "
        f"free cores {cores * median(parts):.2f} times ({cores * min(parts):.2f} to {cores * max(parts):.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--models", type=int, help="in the place of the study's")
    parser.add_argument("--turns", type=int, default=3)
    main(parser.parse_args())
