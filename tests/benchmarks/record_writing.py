"""How fast a record is written, compared with plain sequential writes of the same bytes to the same disk.

    python tests/benchmarks/record_writing.py [--json] [--folder FOLDER]

The sides take turns in one process, each into a fresh temporary folder that is removed; the order changes from one
repetition to the next. Nobody waits for the disk on any side: what is measured is the way into the page cache.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from metaleak.server import BackgroundWriter, RecordWriter

LEARNERS = 64
SHAPES = {
    "layer1.weight": (LEARNERS, 64, 784),
    "layer1.bias": (LEARNERS, 64),
    "layer2.weight": (LEARNERS, 64, 64),
    "layer2.bias": (LEARNERS, 64),
    "head.weight": (LEARNERS, 5, 64),
    "head.bias": (LEARNERS, 5),
}


def plain(folder, replies):
    with open(folder / "all", "wb", buffering=0) as file:
        for arrays in replies:
            for value in arrays.values():
                view = value.reshape(-1).view(np.uint8).data
                while view.nbytes:
                    view = view[file.write(view) :]


def record(folder, replies, background=None):
    writer = RecordWriter(folder / "record", background)
    sent = writer.sent(1, {name: value[0] for name, value in replies[0].items()})
    for number, arrays in enumerate(replies):
        writer.reply(1, range(number * LEARNERS, (number + 1) * LEARNERS), "node", sent, arrays)
    writer.flush()


def background(folder, replies):
    with BackgroundWriter() as writer:
        record(folder, replies, writer)


SIDES = {"plain writes": plain, "record": record, "record, background and drain": background}


def measured(side, where, replies):
    """Return seconds on the clock and of processor time."""
    with tempfile.TemporaryDirectory(dir=where) as temporary:
        os.sync()
        clock, processor = time.perf_counter(), time.process_time()
        SIDES[side](Path(temporary), replies)
        return time.perf_counter() - clock, time.process_time() - processor


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--folder", type=Path, help="a folder on the disk to be measured (default: the temporary one)"
    )
    parser.add_argument("--replies", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=7)
    told = parser.parse_args()
    generator = np.random.default_rng(0)
    distinct = [{name: generator.random(shape, "f4") for name, shape in SHAPES.items()} for _ in range(4)]
    replies = [distinct[number % len(distinct)] for number in range(told.replies)]
    megabytes = sum(value.nbytes for arrays in replies for value in arrays.values()) / 1e6
    taken = {side: [] for side in SIDES}
    for repetition in range(-1, told.repetitions):  # the first warms up and does not count
        names = list(SIDES) if repetition % 2 else list(reversed(SIDES))
        for side in names:
            seconds = measured(side, told.folder, replies)
            if repetition >= 0:
                taken[side].append(seconds)
    clock = {side: statistics.median(seconds for seconds, _ in pairs) for side, pairs in taken.items()}
    rows = {
        side: {
            "MB/s": megabytes / clock[side],
            "of plain": clock["plain writes"] / clock[side],
            "cpu s/GB": statistics.median(processor for _, processor in pairs) / megabytes * 1000,
        }
        for side, pairs in taken.items()
    }
    if told.json:
        print(json.dumps({"megabytes": megabytes, "repetitions": told.repetitions, "sides": rows}))
        return
    print(f"{megabytes:.0f} MB in {told.replies} replies of {LEARNERS} learners, median of {told.repetitions}")
    print(f"{'':30}{'MB/s':>8}{'of plain':>10}{'cpu s/GB':>10}")
    for side, row in rows.items():
        print(f"{side:30}{row['MB/s']:8.0f}{row['of plain']:10.0%}{row['cpu s/GB']:10.2f}")


if __name__ == "__main__":
    main()
