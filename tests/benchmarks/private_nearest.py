"""Where a guarantee costs little: settings of defenses chosen on one seed, accuracy measured on others.

    python tests/benchmarks/private_nearest.py                            # all cases, two hours on one core
    python tests/benchmarks/private_nearest.py --case small               # one of them
    python tests/benchmarks/private_nearest.py --case epsilon-8 --data fashion-mnist
    python tests/benchmarks/private_nearest.py --combine one.log two.log  # the table, of what commands printed
    python tests/benchmarks/private_nearest.py --case learners-50 learners-100 learners-200 learners-400 \\
        --seeds 2-11 --figure docs/private-learners.png                    # by the number of learners

First-order ANIL on MNIST, 5 ways and 5 shots, all learners in each round: an MLP of one hidden layer whose head
adapts and whose body is shared (`shares: [layer1.*]`), or Conv4-32 whose body or last block is shared (`conv4`,
`conv4-block4`; `units` are its filters), epsilon for the whole run at delta 1e-5. On seed 1 the rule
undefended and the defenses get the best of the settings in `SEARCHED`, where a case says so, and else those of
`FIXED`; what is reported are other seeds. `untrained` is the initialization. `noise` is the norm of the noise in the
mean of all learners, in clipping norms. Meta-learning runs in this process (`private_cost.py`); the data's folder is
named by METALEAK_DATA. Rows are printed as they are done, as JSON.
"""

import argparse
import copy
import itertools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import private_cost
import torch
from scipy.stats import t as student

from metaleak.deploy.config.reading import experiment_from

CHOICE, SEEDS = 1, (2, 3, 4, 5)
SECURE = {"name": "secure-aggregation"}
BASE: dict[str, Any] = {
    "data": "mnist",
    "task": {"ways": 5, "shots": 5, "queries": 15},
    "partition": {"learners": 100, "non_members": 0.0},
    "model": {"name": "mlp", "hidden": [16]},
    "rule": {"name": "maml", "order": 1, "adapts": "head", "inner_rate": 1.0},
    "shares": ["layer1.*"],
    "server": {"rounds": 10},
    "evaluation": {"tasks": 300, "queries": 10},
    "attacks": [],
}
SEARCHED: dict[str, dict[str, Sequence[float]]] = {
    "none": {"inner_rate": (0.4, 1.0), "rate": (0.003, 0.03, 0.01)},
    "distributed-record-level": {
        "inner_rate": (0.4, 1.0),
        "rate": (0.02, 0.01),
        "clip": (0.1,),
        "support_clip": (1.0,),
    },
    "distributed-gaussian": {"inner_rate": (0.4, 1.0), "rate": (0.01, 0.02), "clip": (1.0, 0.1)},
}
"""What is tried on seed 1. Under Adam a clipping norm below all gradients' is as good as any other such."""

FIXED = {name: {key: values[-1:] for key, values in tried.items()} for name, tried in SEARCHED.items()}
"""What is taken where only epsilon, the number of learners or the network varies."""

LIKE = {"untrained": "none", "record-level": "distributed-record-level", "gaussian": "distributed-gaussian"}
"""Whose choice serves these, too."""

DEFENSES = (*SEARCHED, *LIKE)


def cases() -> dict[str, list[dict[str, Any]]]:
    """Return by name the cells: changes of `BASE`, epsilon, and what is tried of each defense."""

    def cell(
        epsilon: float = 8.0, search: Sequence[str] = (), settings: dict[str, float] | None = None, **changes: Any
    ) -> dict[str, Any]:
        tried = {name: SEARCHED[name] if name in search else fixed for name, fixed in FIXED.items()}
        for name in tried if settings else ():
            if name != "none":
                tried[name] = {**tried[name], **{key: (value,) for key, value in (settings or {}).items()}}
        return {"changes": changes, "epsilon": epsilon, "tried": tried}

    def learners(count: int) -> dict[str, Any]:
        return {"learners": count}

    all_of_them = tuple(SEARCHED)
    many, few = {"queries": 45}, {"queries": 5}
    conv4 = {"name": "conv4", "filters": 32, "normalization": "none"}
    return {
        "small": [cell(search=all_of_them, task=many)],
        "large": [
            cell(
                search=("none", "distributed-gaussian"),
                task=many,
                partition=learners(200),
                model={"hidden": [64]},
                server={"rounds": 20},
            )
        ],
        **{f"epsilon-{epsilon:g}": [cell(epsilon, task=many)] for epsilon in (1.0, 2.0, 4.0, 8.0, 16.0)},
        **{f"learners-{count}": [cell(partition=learners(count))] for count in (50, 100, 200, 400)},
        **{f"clip-{clip:g}": [cell(task=many, settings={"clip": clip})] for clip in (10.0, 100.0)},
        **{
            f"clip-{clip:g}-adaptive": [cell(task=many, settings={"clip": clip, "adapt": 1.0})]
            for clip in (10.0, 100.0)
        },
        "learners-1000": [cell(task=few, partition=learners(1000))],
        **{
            name: [cell(search=("none",), task=many, model=conv4, shares=shares)]
            for name, shares in (("conv4", ["block*"]), ("conv4-block4", ["block4.*"]))
        },
    }


def main() -> None:
    """Print the rows of the cases that are asked for, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(cases()), default=list(cases()))
    parser.add_argument("--defenses", nargs="+", choices=DEFENSES, default=DEFENSES)
    parser.add_argument("--seeds", type=_seeds, nargs="+", default=[SEEDS], help="such as 2 3 11-60")
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--fixed", action="store_true", help="no search: the last of the settings that a case tries")
    parser.add_argument("--combine", nargs="+", type=Path, metavar="LOG")
    parser.add_argument("--figure", type=Path, help="where to draw noise and loss by the number of learners")
    given = parser.parse_args()
    given.seeds = [seed for several in given.seeds for seed in several]
    torch.set_num_threads(1)
    rows = list(private_cost.rows_of(given.combine)) if given.combine else []
    for name in () if given.combine else given.case:
        for one in cases()[name]:
            for row in measured(name, one, given):
                print(json.dumps(row), flush=True)
                rows.append(row)
    print("\n".join(table(rows)))
    if given.figure:
        draw(rows, given.figure)


def _seeds(text: str) -> Sequence[int]:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def measured(name: str, one: dict[str, Any], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of a cell: of each defense the choice on seed 1 decides the settings of all seeds."""
    size = _merged(BASE, one["changes"])
    told = {
        "case": name,
        "data": given.data,
        "learners": size["partition"]["learners"],
        "queries": size["task"]["queries"],
        "units": size["model"].get("filters") or size["model"]["hidden"][0],
        "rounds": size["server"]["rounds"],
        "epsilon": one["epsilon"],
    }
    best: dict[str, dict[str, float]] = {}
    for defense in given.defenses:
        searched = LIKE.get(defense, defense)
        if searched not in best:
            tried = one["tried"][searched]
            settings = [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())]
            settings = settings[-1:] if given.fixed else settings
            best[searched] = settings[0]
            if len(settings) > 1:
                found = [accuracy(one, searched, each, CHOICE, given)["accuracy"] for each in settings]
                best[searched] = settings[found.index(max(found))]
        for seed in given.seeds:
            row = accuracy(one, defense, best[searched], seed, given)
            yield told | {"defense": defense, "seed": seed, **best[searched], **row}


def accuracy(
    one: dict[str, Any], defense: str, settings: dict[str, float], seed: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Return what `private_cost.cell` measures of a cell with a defense under `settings`."""
    changes = _merged(BASE, one["changes"])
    changes["rule"]["inner_rate"] = settings["inner_rate"]
    changes["server"]["optimizer"] = {"name": "adam", "rate": settings["rate"]}
    if defense == "untrained":
        changes["server"] = {"rounds": 1, "optimizer": {"name": "sgd", "rate": 1e-6}}
    elif defense != "none":
        clips: dict[str, Any] = {key: value for key, value in settings.items() if key.endswith("clip")}
        if "adapt" in settings:
            clips["adapt"] = {"rate": settings["adapt"]}
        changes["defenses"] = [{"name": defense, "epsilon": one["epsilon"], **clips}]
        changes["defenses"] += [SECURE] if defense.startswith("distributed") else []
    changes |= {"seed": seed, "data": given.data}
    changes["evaluation"]["tasks"] = given.tasks
    found = private_cost.cell(experiment_from(changes, "benchmark"))
    return {key: found[key] for key in ("accuracy", "low", "high", "noise", "seconds")}


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        changes_one = isinstance(value, dict) and key in merged and "name" not in value
        merged[key] = _merged(merged[key], value) if changes_one else value
    return merged


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: accuracy over the seeds, and what a defense loses on the same seeds.

    Both with the 95 % interval of Student over seeds.
    """
    cells = _by_cell(rows, "case", "data", "learners", "queries", "units", "rounds", "epsilon")
    lines = [
        "| case | data | learners | queries | units | rounds | epsilon | defense | noise | accuracy | lost |",
        "|---" * 11 + "|",
    ]
    for place, by_defense in cells.items():
        for defense, by_seed in by_defense.items():
            accuracy = [100 * row["accuracy"] for row in by_seed.values()]
            noise = next(iter(by_seed.values()))["noise"]
            words = [
                *map(str, place),
                defense,
                f"{noise:.3g}",
                _interval(accuracy),
                _interval(_lost(by_defense, defense)),
            ]
            lines.append(f"| {' | '.join(words)} |")
    return lines


def draw(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Draw by the number of learners the noise in the mean, with theory's straight line, and the points lost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    cells = dict(sorted(_by_cell(rows, "learners").items()))
    counts = [count for (count,) in cells]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    defenses = [name for name in DEFENSES if name not in ("none", "untrained")]
    for order, defense in enumerate(defenses):
        noise = [next(iter(by_defense[defense].values()))["noise"] for by_defense in cells.values()]
        slope = -1.0 if defense.startswith("distributed") else -0.5
        color = f"C{order}"
        left.loglog(counts, noise, "o", color=color, label=defense)
        left.loglog(counts, [noise[0] * (count / counts[0]) ** slope for count in counts], ":", color=color)
        lost = [_mean_and_half(_lost(by_defense, defense)) for by_defense in cells.values()]
        places = [count * 1.03 ** (order - 1.5) for count in counts]
        means, halves = zip(*lost, strict=True)
        right.errorbar(places, means, halves, fmt="o-", capsize=3, color=color, label=defense)
    left.set(xlabel="learners", ylabel="noise in the mean, clipping norms", title="dotted: 1 / L and 1 / sqrt(L)")
    right.set(xlabel="learners", ylabel="points lost", xscale="log", title="95 % intervals over seeds")
    right.axhline(0, color="0.6", linewidth=0.8)
    for panel in (left, right):
        panel.xaxis.set_major_locator(FixedLocator(counts))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(ScalarFormatter())
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(defenses), fontsize=8)
    figure.savefig(path, dpi=110)


_Cell = dict[str, dict[int, dict[str, Any]]]
"""Rows of one cell, by defense and seed."""


def _by_cell(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], _Cell]:
    cells: dict[tuple[Any, ...], _Cell] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        cells[tuple(row[key] for key in keys)][row["defense"]][row["seed"]] = row
    return cells


def _lost(by_defense: _Cell, defense: str) -> list[float]:
    """Return the points that a defense loses, for each seed that the undefended rule has, too."""
    both = [seed for seed in by_defense[defense] if seed in by_defense["none"]]
    return [100 * (by_defense["none"][seed]["accuracy"] - by_defense[defense][seed]["accuracy"]) for seed in both]


def _mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval, of two values or more."""
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), half


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ", ".join(f"{value:.1f}" for value in values)
    mean, half = _mean_and_half(values)
    return f"{mean:.1f} ({mean - half:.1f} to {mean + half:.1f})"


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
