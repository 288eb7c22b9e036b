"""From the call to the first reply: how long it takes, and where the time goes.

    python tests/benchmarks/start.py

A simulation of the default experiment is started in a process of its own, again and again; a thread looks every 20 ms
at what there is already. Medians of the time at which each step was done, in seconds after the process began.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

STEPS = (
    "everything is imported",
    "the experiment has been tried out",
    "Ray is up",
    "an actor has begun",
    "an actor has its first message",
    "the first reply is here",
)


def main() -> None:
    """Measure several starts, each in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(_one(given.one)))
        return
    starts: list[dict[str, float]] = []
    for _ in range(given.repeats):
        command = [sys.executable, __file__, "--one", str(time.time())]
        outcome = subprocess.run(command, capture_output=True, text=True, check=True)
        starts.append(json.loads(outcome.stdout.splitlines()[-1]))
    from measuring import show

    before = 0.0
    rows = []
    for step in STEPS:
        at = statistics.median(start[step] for start in starts)
        span = f"{min(start[step] for start in starts):.1f} to {max(start[step] for start in starts):.1f}"
        rows.append({"step": step, "at, s": at, "took, s": at - before, "range": span})
        before = at
    show(rows, given.json)


def _one(began: float) -> dict[str, float]:
    """Start one simulation and return when each step was done, in seconds after `began`."""
    import ray

    from metaleak.deploy.config.reading import experiment_from
    from metaleak.deploy.simulate import launch
    from metaleak.server.learning import dispatch

    done: dict[str, float] = {}

    def note(step: str) -> None:
        done.setdefault(step, time.time() - began)

    note(STEPS[0])
    answers = dispatch.Dispatch.answers

    def watched(*given: object) -> object:
        for answer in answers(*given):  # type: ignore[arg-type]
            note(STEPS[5])
            yield answer

    dispatch.Dispatch.answers = watched  # type: ignore[assignment,method-assign]

    tried_out = launch.try_out

    def noted(*given: object) -> None:
        tried_out(*given)  # type: ignore[arg-type]
        note(STEPS[1])

    launch.try_out = noted

    def look() -> None:
        while STEPS[5] not in done:
            if ray.is_initialized():
                note(STEPS[2])
            titles = _titles()
            if any(title.startswith(b"ray::ClientAppActor") for title in titles):
                note(STEPS[3])
            if any(title.startswith(b"ray::ClientAppActor.run") for title in titles):
                note(STEPS[4])
            time.sleep(0.02)

    with tempfile.TemporaryDirectory() as folder:
        asked = experiment_from({"server": {"rounds": 1}, "attacks": []}, "start")
        threading.Thread(target=look, daemon=True).start()
        launch.simulate(asked, Path(folder) / "run")
    # A step too short to be seen was done when the next one was.
    for step, following in zip(reversed(STEPS[:-1]), reversed(STEPS[1:]), strict=True):
        done.setdefault(step, done[following])
    return done


def _titles() -> list[bytes]:
    """Return the titles of the processes that this one has started, and of those that these have."""
    titles, parents = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[process.name] = (process / "stat").read_text().rpartition(") ")[2].split()[1]
            titles[process.name] = (process / "cmdline").read_bytes()
        except OSError:
            continue
    own = {str(os.getpid())}
    while more := {number for number, parent in parents.items() if parent in own} - own:
        own |= more
    return [title for number, title in titles.items() if number in own]


if __name__ == "__main__":
    main()
