"""A hundred learners with private sentences and a real transformer, recorded: one matrix shared, or everything.

    python tests/benchmarks/text_federation.py MODEL_DIRECTORY --shares one|everything [--learners 100]

One round of FedSGD in this process; learners hold four sentences of CoLA (from METALEAK_DATA) each. Prints seconds of
the round, bytes of the record, and the most memory that the process had.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate.launch import simulate_here

ONE = "bert.encoder.layer.0.attention.self.query.weight"


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", type=Path)
    asked.add_argument("--shares", choices=["one", "everything"], default="one")
    asked.add_argument("--learners", type=int, default=100)
    chosen = asked.parse_args()
    directory = str(chosen.model.absolute())
    experiment = experiment_from(
        {
            "data": {"name": "metaleak.clients.datasets:CoLA", "tokenizer": directory, "length": 24},
            "model": {"name": "metaleak.clients.models:Transformer", "directory": directory},
            "rule": "fedsgd",
            "shares": [ONE] if chosen.shares == "one" else ["*"],
            "task": {"ways": 2},
            "partition": {"learners": chosen.learners},
            "server": {"rounds": 1},
            "evaluation": {"tasks": 2, "queries": 1},
            "engine": {"chunk": 1, "device": "cpu"},
            "attacks": [],
        },
        "here",
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        run = simulate_here(experiment, Path(folder) / "run")
        seconds = time.monotonic() - start
        size = sum(file.stat().st_size for file in run.record.rglob("*") if file.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(
        json.dumps(
            {
                "shares": chosen.shares,
                "learners": chosen.learners,
                "seconds": round(seconds, 1),
                "record_bytes": size,
                "peak_bytes": peak,
            }
        )
    )


if __name__ == "__main__":
    main()
