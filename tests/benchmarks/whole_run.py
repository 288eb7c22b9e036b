"""What an attack finds in one round and in many: a federation is simulated, recorded and attacked over its rounds.

    METALEAK_DATA=../shared/data python tests/benchmarks/whole_run.py --noise support:1 --asks support --rounds 1 2 20
    ... whole_run.py --noise shared:16 --asks query --model conv4 --learners 20 --rounds 1 5 20
    ... whole_run.py --secure --learners 30 --attack alignment --rounds 1 5
    ... whole_run.py --noise support:1 --asks support --set partition.examples_per_class=80 --rounds 1 20
    ... whole_run.py --noise shared:4 --attack inverting-gradients --set task.shots=1 task.queries=1 model.hidden=[64]
        targets.learners=8 --learners 8 --members 40 --non-members 120 --rounds 1 5

    ... whole_run.py --noise support:1 --asks support --rounds 20     (how long it takes: 20 rounds of 100 learners)

5-way 5-shot 15-query tasks, Adam at 0.003. The targets are the same for all numbers of rounds, where learners keep
their sets. One line per number of rounds; intervals are 95 %, learners resampled; `--seeds` gives one line per seed,
and of several one line more for each number of rounds, with the mean over seeds and its interval over these.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaleak.attacks.evaluation.intervals import Estimate, over_seeds
from metaleak.attacks.evaluation.membership import Evaluation
from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate.launch import simulate_here

_MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [256]},
    "conv4": {"name": "conv4", "normalization": "none"},
    "lenet": {"name": "lenet"},
}
_ATTACKS: dict[str, dict[str, Any]] = {
    "span": {"name": "span", "knows_defenses": True},
    "alignment": {"name": "alignment", "second_order": False},
    "query": {"name": "query", "knows": "other", "decision": "fit", "fit": 100, "iterations": 1},
    "inverting-gradients": {"name": "inverting-gradients", "knows": "other", "iterations": 300},
}


def experiment(given: argparse.Namespace, seed: int, rounds: int) -> Experiment:
    """Return the experiment of one seed whose attack sees so many rounds."""
    place, _, scale = given.noise.partition(":")
    defenses = [{"name": "noise", "place": place, "scale": float(scale)}] if place else []
    defenses += [{"name": "secure-aggregation"}] if given.secure else []
    attack = given.attack or ("span" if given.model == "mlp" else "alignment")
    settings = {**_ATTACKS[attack], "asks": given.asks, **json.loads(given.attack_settings)}
    if attack == "alignment" and given.asks == "query":
        settings.pop("second_order", None)
    plain = {
        "seed": seed,
        "data": given.data,
        "task": {"ways": 5, "shots": 5, "queries": 15},
        "partition": {"learners": given.learners},
        "model": _MODELS[given.model],
        "server": {"rounds": max(given.rounds), "optimizer": {"name": "adam", "rate": 0.003}},
        "evaluation": {"every": 10**6, "tasks": 50, "queries": 10},
        "defenses": defenses,
        "attacks": [settings],
        "targets": {"members": given.members, "non_members": given.non_members, "rounds": rounds},
    }
    return experiment_from(plain, "whole run", given.set)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the settings that `experiment` takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", default="", help="place:scale")
    parser.add_argument("--asks", choices=("query", "support"), default="query")
    parser.add_argument("--attack", choices=tuple(_ATTACKS))
    parser.add_argument("--attack-settings", default="{}")
    parser.add_argument("--model", choices=tuple(_MODELS), default="mlp")
    parser.add_argument("--data", choices=("mnist", "fashion-mnist"), default="mnist")
    parser.add_argument("--secure", action="store_true")
    parser.add_argument("--learners", type=int, default=100)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--non-members", type=int, default=5000)
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 5, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[21])
    parser.add_argument("--set", nargs="*", default=[])
    return parser


def main() -> None:
    """Simulate each seed once, attack it over each number of rounds, and print a JSON line for each."""
    given = parser(__doc__).parse_args()
    found: dict[int, list[Evaluation]] = {rounds: [] for rounds in given.rounds}
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = simulate_here(experiment(given, seed, 1), Path(folder) / "run")
            for rounds in given.rounds:
                asked, busy = experiment(given, seed, rounds), time.process_time()
                result = assess(run, asked, asked.attacks[0], f"rounds-{rounds}")
                assert result.evaluation is not None
                found[rounds].append(result.evaluation)
                took = {
                    **{measure.name: round(measure.value, 2) for measure in result.measured},
                    "s": result.seconds,
                    "processor s": round(time.process_time() - busy, 1),
                    "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                }
                _print(given, {"seed": seed, "rounds": rounds}, [result.evaluation], took)
    if len(given.seeds) > 1:
        for rounds, evaluations in found.items():
            _print(given, {"seeds": given.seeds, "rounds": rounds}, evaluations, {})


def _print(
    given: argparse.Namespace, which: dict[str, Any], evaluations: Sequence[Evaluation], took: dict[str, float]
) -> None:
    """Print one line: of one seed's evaluation, or the mean over those of several."""
    members, others = (sum(getattr(one, kind) for one in evaluations) for kind in ("members", "non_members"))
    rarer = min(members, others)
    rates = [rate for one in evaluations if (rate := one.tpr["0.01"]) is not None]
    line = {
        **{key: getattr(given, key) for key in ("noise", "asks", "model", "data", "secure", "learners", "set")},
        **which,
        "AUC": _text(over_seeds([one.auc for one in evaluations], rarer)),
        "TPR at 1 %": _text(over_seeds(rates, rarer)) if len(rates) == len(evaluations) else "",
        "targets": f"{members} + {others}",
        **took,
    }
    print(json.dumps(line), flush=True)


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


if __name__ == "__main__":
    main()
