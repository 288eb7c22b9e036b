"""Functions shared by the comparisons with other libraries: a side in its own process, and the table of results."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from metaleak.deploy.engines.cores import usable_cores

HERE = Path(__file__).resolve().parent

# One thread a process, no accelerator, and nobody calls home.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PFL_PYTORCH_DEVICE": "cpu",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class SideFailed(RuntimeError):
    """A side of a comparison did not come to its end; the message ends with its last words."""


def run_side(command: Sequence[str], result: Path, timeout: float = 1800.0) -> dict[str, Any]:
    """Run one side of a comparison in a process of its own and return the JSON that it wrote to `result`.

    A fresh process each time: no side lives from what another left in memory. What metaleak keeps between runs lies
    beside the result, and how many learners are best computed at once is measured again each time.
    """
    result.unlink(missing_ok=True)
    cache = result.parent / "cache"
    (cache / "metaleak" / "chunks.json").unlink(missing_ok=True)
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}
    environment["XDG_CACHE_HOME"] = str(cache)
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    if ran.returncode != 0 or not result.is_file():
        last = "\n".join((ran.stdout + ran.stderr).strip().splitlines()[-25:])
        raise SideFailed(f"{' '.join(command)}\nended with {ran.returncode}:\n{last}")
    said = json.loads(result.read_text())
    if not isinstance(said, dict):
        raise SideFailed(f"{result}: not a mapping")
    return said


def has_module(python: str, module: str) -> bool:
    """Return whether the interpreter `python` can import `module`."""
    found = subprocess.run(
        [python, "-c", f"import {module}"], capture_output=True, check=False, env={**os.environ, **_ENVIRONMENT}
    )
    return found.returncode == 0


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, least and greatest of `values`."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def in_words(measured: Mapping[str, float]) -> str:
    """Return a median with its range, for the table."""
    return f"{measured['median']:,.0f} ({measured['low']:,.0f} to {measured['high']:,.0f})"


def listed(items: Mapping[str, object]) -> str:
    """Return names and values in one line."""
    return ", ".join(f"{name} {value}" for name, value in items.items())


def yes_or_no(answer: bool) -> str:
    """Return a word for the table."""
    return "yes" if answer else "no"


def machine() -> dict[str, Any]:
    """Return what the numbers depend on, beside the code."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "processor": model,
        "cores": usable_cores(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def arguments(description: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every comparison has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats, help="runs of each side (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small, once; its numbers mean nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """Print a table and the notes below it."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    # A file or a pipe has no width: a table that is cut helps nobody.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)


def alternating(sides: Mapping[str, Callable[[], dict[str, Any]]], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Run all `sides` once, in turn, then all of them again: what slows the machine down meets every side."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, run in sides.items():
            print(f"{repeat + 1}/{repeats}: {name}", file=sys.stderr, flush=True)
            results[name].append(run())
    return results


def main_of(compare: Callable[[Path], None]) -> int:
    """Run `compare` with a directory of its own; return an exit code."""
    with tempfile.TemporaryDirectory(prefix="against-") as folder:
        try:
            compare(Path(folder))
        except SideFailed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    return 0
