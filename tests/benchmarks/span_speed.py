"""How many (target, learner) pairs per second the span test scores: every target against every learner.

    python tests/benchmarks/span_speed.py [--targets 6000] [--learners 20] [--units 256] [--images 100] [--json]

`span_scores` with one thread, from float32 gradients to scores, the decomposition of each gradient included; the
gradients are products of random coefficients with random images of 784 pixels. The median of five, on the clock and
of processor time, which says more on a busy machine.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

import measuring

from metaleak.attacks.span.span_test import span_scores

PIXELS = 784


def made(targets: int, learners: int, units: int, images: int) -> tuple[Tensor, Tensor]:
    """Return gradients `(L, H, P + 1)` and inputs `(T, P + 1)`."""
    generator = torch.Generator().manual_seed(0)
    held = torch.rand(learners, images, PIXELS + 1, generator=generator)
    coefficients = torch.randn(learners, units, images, generator=generator) * torch.logspace(0, -3, images)
    return coefficients @ held, torch.rand(targets, PIXELS + 1, generator=generator)


def seconds(gradients: Tensor, inputs: Tensor, repetitions: int = 5) -> tuple[float, float]:
    """Return the median seconds of scoring everything once, on the clock and of processor time."""
    span_scores(gradients[:1], inputs[:10])
    clock, processor = [], []
    for _ in range(repetitions):
        started = time.perf_counter(), time.process_time()
        span_scores(gradients, inputs)
        clock.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
    return statistics.median(clock), statistics.median(processor)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("targets", 6000), ("learners", 20), ("units", 256), ("images", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    took, busy = seconds(*made(asked.targets, asked.learners, asked.units, asked.images))
    pairs = asked.targets * asked.learners
    row: dict[str, Any] = {
        "targets": asked.targets,
        "learners": asked.learners,
        "units": asked.units,
        "images": asked.images,
        "seconds": took,
        "pairs a second": pairs / took,
        "pairs a processor second": pairs / busy,
    }
    measuring.show([row], asked.json)


if __name__ == "__main__":
    main()
