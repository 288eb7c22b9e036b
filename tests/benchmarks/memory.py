"""Memory of the main process by the number of learners per round, and learners per second, up to 10 000.

    python tests/benchmarks/memory.py                 # 2 000 and 10 000 learners, 450 KB gradients, recording on
    python tests/benchmarks/memory.py --learners 10 30 100 300 1000 3000 10000 --figure docs/scaling.png
    python tests/benchmarks/memory.py --learners 10000 100000 --of 1000000    # not recorded, 219 KB gradients

Each number of learners is simulated in a process of its own, whose peak resident memory is measured. This includes
shared memory that it only reads (Ray's object store), and the data set, which is the same for all. The memory of the
process alone is printed, too, sampled every 20 ms.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from measuring import MLP, experiment, round_seconds, show

WIDE = {**MLP, "model": {"name": "mlp", "hidden": [128, 64]}}
"""The MLP 784-128-64-5: 109 061 parameters, 436 KB."""


def main() -> None:
    """Measure every number of learners in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--of", type=int, help="learners of the federation, of which each round samples")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(_one(given.one, given.rounds, given.of)))
        return
    rows = []
    for learners in given.learners:
        command = [sys.executable, __file__, "--one", str(learners), "--rounds", str(given.rounds)]
        command += [] if given.of is None else ["--of", str(given.of)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode != 0:
            raise SystemExit(outcome.stderr[-2000:])
        rows.append(json.loads(outcome.stdout.splitlines()[-1]))
    show(rows, given.json)
    if given.figure is not None:
        _draw(rows, given.figure)


def _one(learners: int, rounds: int, of: int | None) -> dict[str, Any]:
    """Simulate once; return the time of a round and the memory."""
    own: list[float] = []
    stop = threading.Event()
    sampler = threading.Thread(target=_sample, args=(own, stop), daemon=True)
    sampler.start()
    asked = experiment(WIDE, learners, rounds, True, room=10_000)
    if of is not None:
        asked = experiment(MLP, of, rounds, False, sampled=learners)
    seconds, first = round_seconds(asked, warm=1)
    stop.set()
    sampler.join()
    median = statistics.median(seconds)
    return {
        "learners": learners,
        "seconds a round": median,
        "learners/s": learners / median,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "own peak MB": max(own),
        "first round s": first,
    }


def _sample(own: list[float], stop: threading.Event) -> None:
    """Note the memory that is this process's own, in MB, every 20 ms."""
    while not stop.is_set():
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        own.append(int(lines["RssAnon"].split()[0]) / 1024)
        time.sleep(0.02)


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    learners = np.array([row["learners"] for row in rows], dtype=float)
    seconds = np.array([row["seconds a round"] for row in rows])
    # Every point counts by its relative error, or the largest would decide alone.
    slope, constant = np.polyfit(learners, seconds, 1, w=1 / seconds)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.loglog(learners, learners / seconds, "o-", label="measured")
    left.loglog(learners, learners / (constant + slope * learners), ":", label="straight-line fit")
    left.set(xlabel="learners a round", ylabel="learners per second")
    left.set_title(f"a round takes {constant:.2f} s + {1e3 * slope:.2f} ms a learner", fontsize=10)
    left.legend()
    right.semilogx(learners, [row["peak MB"] for row in rows], "o-", label="resident, peak")
    right.semilogx(learners, [row["own peak MB"] for row in rows], "s-", label="its own, peak")
    right.set(xlabel="learners a round", ylabel="main process, MB", ylim=(0, None))
    right.legend()
    figure.savefig(path, dpi=110)
    print(f"a round takes {constant:.3f} s + {1e3 * slope:.3f} ms a learner; figure: {path}")


if __name__ == "__main__":
    main()
