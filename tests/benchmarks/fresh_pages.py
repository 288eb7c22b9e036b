"""What it costs to write a reply's file into memory that is new, and into memory that was used a moment ago.

    python tests/benchmarks/fresh_pages.py

Files of the size of 128 MLP learners' gradients are written and kept, and written and removed, in turns. A virtual
machine whose host takes back free memory (free page reporting, a balloon) pays for each page that is touched anew,
outside of what its own tools see: there the two differ by several times, on a machine of one's own they hardly do.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import show

_LEARNERS, _BYTES, _PART = 128, 219_000, 2 << 20


def main() -> None:
    """Measure and print."""
    numbers = np.random.default_rng(0).integers(0, 256, _LEARNERS * _BYTES, dtype=np.uint8).data

    def written(path: Path) -> float:
        began = time.process_time()
        with open(path, "wb", buffering=0) as file:
            for start in range(0, len(numbers), _PART):
                file.write(numbers[start : start + _PART])
        return 1e6 * (time.process_time() - began) / _LEARNERS

    rows = []
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        for what, count, kept in (("used a moment ago", 40, False), ("new", 100, True)):
            took = []
            for place in range(count):
                took.append(written(folder / str(place)))
                if not kept:
                    (folder / str(place)).unlink()
            # What was used last before the first files is still at hand.
            rows.append({"memory": what, "microseconds a learner": statistics.median(took[count // 2 :])})
    show(rows, False)


if __name__ == "__main__":
    main()
