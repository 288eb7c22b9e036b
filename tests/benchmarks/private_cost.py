"""What a guarantee costs: a rule's adapted accuracy without and with each defense, by epsilon and number of learners.

    python tests/benchmarks/private_cost.py                            # MNIST, MLP-256, 100 learners, epsilon 8
    python tests/benchmarks/private_cost.py --learners 50 100 200 400 --seeds 1 2 3
    python tests/benchmarks/private_cost.py --data fashion-mnist --model conv4 --epsilons 1 2 4 8

Every learner takes part in each of the rounds; 5 ways, 5 shots, 15 queries; held-out tasks, with the interval over
tasks. Meta-learning runs in this process, one learner after another, without Flower: the numbers are those of
`metaleak simulate`, up to their last bits. The data's folder is named by METALEAK_DATA. `noise` is the norm of the
noise in the mean of all learners, in units of the query set's clipping norm; it falls with the root of their number
and grows with the root of the parameters'.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.defenses import GaussianMechanism, Reading, RecordLevel
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate.accuracy import HeldOutTasks

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [256]},
    "conv4": {"name": "conv4", "filters": 32, "normalization": "none"},
}


def main() -> None:
    """Train every cell, print a row as each is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--model", choices=list(MODELS), default="mlp")
    parser.add_argument("--rule", type=json.loads, default={"name": "fomaml"}, help='such as {"name": "reptile"}')
    parser.add_argument(
        "--defenses",
        nargs="+",
        choices=["none", "record-level", "distributed-record-level", "gaussian"],
        default=["none", "record-level"],
    )
    parser.add_argument("--epsilons", type=float, nargs="+", default=[8.0])
    parser.add_argument("--learners", type=int, nargs="+", default=[100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--clip", type=float, default=1.0, help="of the query set, or of the shared gradient")
    parser.add_argument("--support-clip", type=float, default=None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--optimizer", type=json.loads, default={"name": "adam", "rate": 0.003})
    parser.add_argument(
        "--set", nargs="*", default=[], help="changes of the experiment, such as partition.non_members=0"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for learners in given.learners:
            for name in given.defenses:
                for epsilon in given.epsilons if name != "none" else [math.inf]:
                    row = cell(_experiment(given, seed, learners, name, epsilon))
                    row = {"defense": name, "epsilon": epsilon, "learners": learners, "seed": seed} | row
                    print(
                        json.dumps(row) if given.json else "  ".join(f"{key} {value}" for key, value in row.items()),
                        flush=True,
                    )


def _experiment(given: argparse.Namespace, seed: int, learners: int, name: str, epsilon: float) -> Experiment:
    record_level = {"clip": given.clip, "support_clip": given.support_clip, "epsilon": epsilon}
    defenses: dict[str, list[dict[str, Any]]] = {
        "none": [],
        "gaussian": [{"name": "gaussian", "clip": given.clip, "epsilon": epsilon}],
        "record-level": [{"name": "metaleak.defenses:RecordLevel", **record_level}],
        "distributed-record-level": [
            {"name": "metaleak.defenses:DistributedRecordLevel", **record_level},
            {"name": "secure-aggregation"},
        ],
    }
    return experiment_from(
        {
            "seed": seed,
            "data": given.data,
            "task": {"ways": 5, "shots": 5, "queries": 15},
            "partition": {"learners": learners},
            "model": MODELS[given.model],
            "rule": given.rule,
            "defenses": defenses[name],
            "server": {"rounds": given.rounds, "optimizer": given.optimizer},
            "evaluation": {"tasks": given.tasks, "queries": 10},
            "attacks": [],
        },
        "benchmark",
        given.set,
    )


def cell(experiment: Experiment) -> dict[str, Any]:
    """Return the adapted accuracy after meta-learning in this process, its interval, and the noise in the mean."""
    started = time.monotonic()
    federation, rounds = experiment.federation(), experiment.server.rounds
    numbers = range(experiment.partition.learners)
    steps = experiment.server.optimizer.over(federation.shared(federation.initial_parameters()))
    tasks = HeldOutTasks(federation, experiment.evaluation)
    for round in range(1, rounds + 1):
        parameters = federation.whole(steps.parameters)
        total: dict[str, Any] = {}
        for start in range(0, len(numbers), 10):
            some = federation.learners(numbers[start : start + 10])
            gradients, _ = cohort_meta_gradients(some, parameters, round)
            total = {name: total.get(name, 0.0) + value.sum(0) for name, value in gradients.items()}
        steps.step({name: (value / len(numbers)).numpy() for name, value in total.items()})
    found = tasks.accuracy(steps.parameters)
    entries = sum(value.numel() for value in steps.parameters.values())
    return {
        "accuracy": round3(found.value),
        "low": round3(found.low),
        "high": round3(found.high),
        "noise": round3(_noise(experiment, federation.defenses, entries)),
        "seconds": round3(time.monotonic() - started),
    }


def _noise(experiment: Experiment, defenses: tuple[object, ...], entries: int) -> float:
    """Return the norm of the noise in the mean of all learners, in clipping norms."""
    learners, task = experiment.partition.learners, experiment.task
    for defense in defenses:
        if isinstance(defense, GaussianMechanism):
            return defense.standard_deviation / defense.clip * math.sqrt(entries / learners)
        if isinstance(defense, RecordLevel):
            reading: Reading = "query" if "query" in (defense.readings or {}) else "all"
            count = task.ways * (task.queries + (0 if reading == "query" else task.shots))
            one = defense.standard_deviation(reading, count) / defense.clip_of(reading)
            return one * math.sqrt(entries / learners)
    return 0.0


def rows_of(logs: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the rows that commands printed into `logs`, a JSON document a line."""
    lines = [line for path in logs for line in path.read_text().splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


def round3(value: float) -> float:
    """Return `value` to three places."""
    return round(value, 3)


if __name__ == "__main__":
    main()
