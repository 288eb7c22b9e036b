"""Write every number of six small experiments and of all attacks on them to a file, or compare with such a file.

    python tests/benchmarks/same_numbers.py --write numbers.json     # before a change that must change no number
    python tests/benchmarks/same_numbers.py --compare numbers.json   # after it: exit code 1 where one bit differs

Bits depend on the processor and on the versions of the libraries, so a file of one machine is no measure for another.
`same_numbers.json` beside this script was written before the modules were sorted into rooms.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.numpy import load_file

from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate.launch import simulate_here

_MLP = {"name": "mlp", "hidden": [24]}
_SMALL = {
    "partition": {"learners": 6},
    "server": {"rounds": 3},
    "evaluation": {"every": 2, "tasks": 8},
    "engine": {"chunk": 2, "device": "cpu"},
    "targets": {"members": 12, "non_members": 12},
}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "maml": {"model": _MLP},
    "anil under support noise": {
        "model": _MLP,
        "rule": "anil",
        "task": {"shots": 2, "queries": 3},
        "defenses": {"name": "noise", "place": "support", "scale": 0.3},
    },
    "first order, LeNet": {"model": "lenet", "rule": {"name": "fomaml", "inner_rate": 0.01}},
    "convolutions": {
        "model": {"name": "conv4", "filters": 4, "normalization": "none"},
        "defenses": [{"name": "quantization", "bits": 8}, {"name": "noise", "place": "shared", "scale": 0.5}],
    },
    "Reptile, private": {
        "model": _MLP,
        "rule": {"name": "reptile", "inner_steps": 3},
        "defenses": {"name": "gaussian", "clip": 1.0, "epsilon": 8.0},
    },
    "secure aggregation": {
        "model": _MLP,
        "defenses": [{"name": "pruning", "keep": 0.3}, "secure-aggregation"],
        "targets": {"members": 12, "non_members": 12, "rounds": 2},
    },
}
_FEW = {"iterations": 6, "chunk": 8}
_LIGHT = {"samples": 30, "stand_ins": 2, "shadows": 4}
ATTACKS: dict[str, dict[str, Any]] = {
    "query": {"name": "query", **_FEW},
    "support": {"name": "support", **_FEW},
    "span, query": {"name": "span"},
    "span, support, defenses known": {"name": "span", "asks": "support", "knows_defenses": True},
    "span, free": {"name": "span", "coefficients": "free"},
    "alignment, query": {"name": "alignment", **_LIGHT},
    "alignment, support": {"name": "alignment", "asks": "support", **_LIGHT},
    "dlg": {"name": "dlg", "iterations": 3, "chunk": 8},
    "inverting-gradients": {"name": "inverting-gradients", "iterations": 6, "chunk": 8},
    "cosine-tv": {"name": "cosine-tv", "iterations": 6, "chunk": 8},
    "likelihood-ratio": {"name": "likelihood-ratio"},
}
_TIMES = {"seconds", "time", "started", "ended", "received"}


def numbers(folder: Path) -> dict[str, Any]:
    """Return the numbers of every experiment and attack: tensors as digests, the rest as it is."""
    found: dict[str, Any] = {}
    for place, (title, changes) in enumerate(EXPERIMENTS.items()):
        experiment = experiment_from({**_SMALL, **changes, "attacks": []}, title)
        run = simulate_here(experiment, folder / str(place))
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        found[title] = {
            "parameters": _digest(load_file(run.path / "parameters.safetensors")),
            "metrics": [{key: value for key, value in row.items() if key not in _TIMES} for row in rows],
            "attacks": {name: _attacked(run, experiment, name, attack) for name, attack in ATTACKS.items()},
        }
        print(f"{title}: done", file=sys.stderr)
    return found


def _attacked(run: Any, experiment: Any, name: str, attack: dict[str, Any]) -> dict[str, Any]:
    result = name.replace(",", "").replace(" ", "-")
    try:
        found = assess(run, experiment, Plugin(**attack), result)
    except Exception as error:  # noqa: BLE001 (whatever it says, it is to say the same afterwards)
        return {"error": f"{type(error).__name__}: {error}".replace(str(run.path), "RUN")}
    table = pq.read_table(run.path / "attacks" / result / "scores.parquet")
    columns = {column: table[column].to_numpy() for column in table.column_names}
    auc = found.evaluation.auc.value if found.evaluation else None
    return {"auc": auc, "columns": {name: _digest({name: one}) for name, one in columns.items()}}


def _digest(arrays: dict[str, Any]) -> str:
    """Return a hash of the values, whatever their names' order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return digest.hexdigest()[:16]


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [one for key in keys for one in _differences(before.get(key), after.get(key), f"{where}/{key}")]
    return [] if before == after else [f"{where}: {before} before, {after} now"]


def main() -> int:
    """Write the numbers, or compare them; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--write", type=Path)
    chosen.add_argument("--compare", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(json.dumps(numbers(Path(folder))))
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    different = _differences(json.loads(arguments.compare.read_text()), found)
    print("\n".join(different) or "not a bit differs")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
