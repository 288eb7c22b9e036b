"""Shadow models a minute: on Ray over all cores, against the plain loop in one process.

    python tests/benchmarks/shadow_models_speed.py STUDY.yaml --turns 3

Both are timed in turn, from an empty folder, without the start of Ray and the loading of the data; the ratio of each
pair is printed.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from metaleak.attacks.work import Work, map_here
from metaleak.deploy.engines.ray_map import ray_map
from metaleak.deploy.pretraining.reading import read_study
from metaleak.deploy.pretraining.shadow_models import make_models


def seconds(study, spread) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        make_models(study, Path(folder), Work(0, None, spread))
        return time.monotonic() - began


def main(given: argparse.Namespace) -> None:
    study = read_study(given.study)
    small = study.model_copy(update={"models": 4, "seed": study.seed + 1})
    ratios = []
    with ray_map(study.engine, "begin again") as on_ray:
        for spread in (map_here, on_ray):
            seconds(small, spread)
        for _ in range(given.turns):
            here, there = seconds(study, map_here), seconds(study, on_ray)
            ratios.append(here / there)
            print(
                f"loop {60 * study.models / here:.1f} models a minute, Ray {60 * study.models / there:.1f}: "
                f"{ratios[-1]:.2f} times",
                flush=True,
            )
    print(f"median {median(ratios):.2f} times")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    main(parser.parse_args())
