"""The speed of a whole round as a part of that of the bare computation.

    python tests/benchmarks/round_throughput.py mlp       # 1 000 learners
    python tests/benchmarks/round_throughput.py conv4     # 32 learners
    python tests/benchmarks/round_throughput.py mlp --moved   # recording without direct I/O, too

Alternates the bare meta-gradient computation on all cores (two processes, episodes ready in memory, best chunk size)
with simulations on as many Ray actors, recording on and off; medians. Several rounds are timed in each simulation,
from end to end.
"""

import argparse
import statistics
import sys
from typing import Any
from unittest.mock import patch

from measuring import CONV4, MLP, BareComputation, experiment, fitting, round_seconds, show

from metaleak.deploy.engines.cores import usable_cores
from metaleak.server.record import writer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["mlp", "conv4"])
    parser.add_argument("--learners", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--keep", type=int, help="rounds of the record that stay on disk; all by default")
    parser.add_argument("--moved", action="store_true", help="also record with replies moved and never copied")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    shape = MLP if given.model == "mlp" else CONV4
    learners = given.learners or (1000 if given.model == "mlp" else 32)
    workers = usable_cores()
    bare = BareComputation(experiment(shape, learners, 1, True), learners, workers)
    bare.measure(fitting(learners, workers))
    bare.times.clear()
    recorded: list[float] = []
    moved: list[float] = []
    silent: list[float] = []
    for _ in range(given.repeats):
        bare.measure(fitting(learners, workers) * (2 if given.model == "mlp" else 1))
        recorded += round_seconds(experiment(shape, learners, given.rounds, True, actors=workers), keep=given.keep)[0]
        if given.moved:
            with patch.object(writer, "_LEAST_COPIED", sys.maxsize):
                moved += round_seconds(experiment(shape, learners, given.rounds, True, actors=workers))[0]
        silent += round_seconds(experiment(shape, learners, given.rounds, False, actors=workers))[0]
    bare.end()
    chunk, bare_seconds = bare.best()
    seconds = statistics.median(recorded)
    rows: list[dict[str, Any]] = [
        {
            "what": f"bare, chunk {chunk}",
            "seconds": bare_seconds,
            "learners/s": learners / bare_seconds,
            "ratio": 1.0,
        },
        {
            "what": "round, recording",
            "seconds": seconds,
            "learners/s": learners / seconds,
            "ratio": bare_seconds / seconds,
            "fastest": min(recorded),
            "slowest": max(recorded),
        },
    ]
    if moved:
        slower = statistics.median(moved)
        rows.append(
            {
                "what": "round, recording, moved",
                "seconds": slower,
                "learners/s": learners / slower,
                "ratio": bare_seconds / slower,
                "fastest": min(moved),
                "slowest": max(moved),
            }
        )
    quiet = statistics.median(silent)
    rows.append(
        {
            "what": "round, not recording",
            "seconds": quiet,
            "learners/s": learners / quiet,
            "ratio": bare_seconds / quiet,
            "recording costs": seconds / quiet - 1,
        }
    )
    show(rows, given.json)


if __name__ == "__main__":
    main()
