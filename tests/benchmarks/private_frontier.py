"""The frontier of deploy/experiments/private.yaml in one process, without Ray: accuracy, AUC and epsilon of each.

    python tests/benchmarks/private_frontier.py                                 # hours on one core
    python tests/benchmarks/private_frontier.py --part 0/4                      # every fourth run
    python tests/benchmarks/private_frontier.py --epsilons 8                    # and what has no epsilon
    python tests/benchmarks/private_frontier.py --defenses none record-level --seeds 2 3
    python tests/benchmarks/private_frontier.py --set targets.non_members=1000 --attacks query
    python tests/benchmarks/private_frontier.py --attack '{"name": "alignment", "samples": 1000}'
    python tests/benchmarks/private_frontier.py --combine one.log two.log       # the table, of what commands printed

The data's folder is named by METALEAK_DATA. A line of JSON is printed for each run as it is done.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import private_cost
import torch

from metaleak.deploy.assess.assessment import assess, planned_attacks
from metaleak.deploy.config.defense_words import describe_strength
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.suite import read_suite_file
from metaleak.deploy.results.reading import read_run
from metaleak.deploy.simulate.launch import simulate_here

SUITE = Path(__file__).parents[2] / "deploy/experiments/private.yaml"


def main() -> None:
    """Print a row of each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="0/1", help="number/of how many")
    parser.add_argument("--epsilons", type=float, nargs="+")
    parser.add_argument("--defenses", nargs="+", help="names of defenses, `none` and `fedmenf`; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--attacks", nargs="+", choices=("query", "support"), default=("query", "support"))
    parser.add_argument("--attack", type=json.loads, help="the attack in place of the suite's span test")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--combine", nargs="+", type=Path, metavar="LOG")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.combine:
        print("\n".join(table(private_cost.rows_of(given.combine))))
        return
    number, parts = map(int, given.part.split("/"))
    rows = []
    for seed in given.seeds:
        runs = read_suite_file(SUITE).experiments([*given.set, f"seed={seed}"])
        grouped: dict[str, list[Experiment]] = {}
        for one in runs:
            spent = [defense.settings["epsilon"] for defense in one.defenses if "epsilon" in defense.settings]
            if given.epsilons and any(epsilon not in given.epsilons for epsilon in spent):
                continue
            if given.defenses and defense_name(one) not in given.defenses:
                continue
            if given.attack:
                asks = one.attacks[0].settings["asks"]
                one = one.model_copy(update={"attacks": (Plugin(**given.attack, asks=asks),)})
            grouped.setdefault(one.simulation_key(), []).append(one)
        for experiments in list(grouped.values())[number::parts]:
            rows.append(measured(experiments, given.attacks))
            print(json.dumps(rows[-1]), flush=True)
    print("\n".join(table(rows)))


def defense_name(experiment: Experiment) -> str:
    """Return the name of the run's first defense; without one that of a rule which is one, or `none`."""
    if experiment.defenses:
        return experiment.defenses[0].name
    return "fedmenf" if experiment.rule.name == "fedmenf" else "none"


def measured(experiments: Sequence[Experiment], asked: Sequence[str]) -> dict[str, Any]:
    """Return what a run is worth, and what each attack on it found."""
    first, started = experiments[0], time.monotonic()
    plain = first.resolved()
    row: dict[str, Any] = {
        "defense": describe_strength(plain["defenses"]) + ("" if plain["rule"]["name"] == "maml" else ", FedMeNF"),
        "seed": first.seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = simulate_here(first, Path(folder) / "run")
        accuracy = read_run(run.path).accuracy
        assert accuracy is not None
        row["accuracy"] = [accuracy.value, accuracy.low, accuracy.high]
        for one in experiments:
            for name, attack in planned_attacks(one).items():
                if attack.settings.get("asks") not in asked:
                    continue
                found = assess(run, one, attack, f"{name}-{attack.settings['asks']}")
                assert found.evaluation is not None
                assert found.privacy is not None
                auc = found.evaluation.auc
                row[f"{found.asks} auc"] = [auc.value, auc.low, auc.high]
                row[f"{found.asks} proven"] = found.privacy.proven
                row["accounted"] = found.privacy.accounted_run
                row["attack"] = attack.name
                row["targets"] = f"{found.evaluation.members} + {found.evaluation.non_members}"
    return row | {"seconds": round(time.monotonic() - started)}


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the lines of a table."""
    lines = ["| defense | seed | accuracy, % | AUC, query | AUC, support | proven | accounted |", "|---" * 7 + "|"]
    for row in rows:
        values = [_interval([100 * one for one in row["accuracy"]], 1)]
        values += [_interval(row.get(f"{which} auc"), 3) for which in ("query", "support")]
        proven = max(row.get(f"{which} proven", 0.0) for which in ("query", "support"))
        accounted = row.get("accounted")
        values += [f"{proven:.2f}", "" if accounted is None else f"{accounted:.3g}"]
        lines.append(f"| {row['defense']} | {row['seed']} | {' | '.join(values)} |")
    return lines


def _interval(values: Sequence[float] | None, places: int) -> str:
    if values is None:
        return ""
    value, low, high = (f"{one:.{places}f}" for one in values)
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
