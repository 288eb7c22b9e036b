"""Cohorts compared with one Flower node per learner: the time of a round of 1 000 learners, MLP, with recording.

    python tests/benchmarks/nodes.py

One node per learner is measured as shipped, with at most 64 messages awaiting replies at a time, and with the same
strategy without that limit, where Flower gets all messages of a round at once.
"""

import argparse
import statistics
from typing import Any

from measuring import MLP, experiment, round_seconds, show

from metaleak.server.learning import dispatch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    modes: dict[str, tuple[dict[str, Any], int, int]] = {
        "cohorts": ({}, 64, 12),
        "a node a learner": ({"learners_per_node": 1}, 64, 5),
        "a node a learner, all out at once": ({"learners_per_node": 1}, 10**6, 4),
    }
    times: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(given.repeats):
        for name, (engine, in_flight, rounds) in modes.items():
            dispatch.IN_FLIGHT = in_flight
            times[name] += round_seconds(experiment(MLP, given.learners, rounds, True, **engine))[0]
    fast = statistics.median(times["cohorts"])
    show(
        [
            {
                "nodes": name,
                "seconds a round": statistics.median(found),
                "learners/s": given.learners / statistics.median(found),
                "times slower": statistics.median(found) / fast,
            }
            for name, found in times.items()
        ],
        given.json,
    )


if __name__ == "__main__":
    main()
