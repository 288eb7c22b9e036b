"""A suite: a grid of experiments around one, each simulated and attacked, and none of it twice."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metaleak.attacks.observation import Progress
from metaleak.deploy.assessment import assess, planned_attacks
from metaleak.deploy.errors import Interrupted, one_line
from metaleak.deploy.experiment import Experiment, experiment_from, read_yaml, with_value
from metaleak.deploy.launch import RoundDone, go_on, simulate
from metaleak.deploy.plugins import Plugin, first_problem
from metaleak.deploy.report_rows import describe_defences
from metaleak.deploy.results import Cell
from metaleak.deploy.run_directory import RunDirectory, write_text

_SHORT = {"models": "model", "rules": "rule", "learners": "partition.learners", "ways": "task.ways"}


class Suite(BaseModel):
    """A base experiment and the axes along which it is varied.

    `grid` maps a key of the experiment, such as `defences`, `model` or `task.ways`, to the list of its values; the
    suite is all combinations. `models`, `rules`, `learners` and `ways` are short for `model`, `rule`,
    `partition.learners` and `task.ways`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "suite"
    base: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)

    def experiments(self, changes: Sequence[str] = ()) -> list[Experiment]:
        """Return one experiment a combination; raises `ValueError` in one line when one is wrong.

        `changes` such as `server.rounds=5` are applied to each of them.
        """
        keys = [_SHORT.get(key, key) for key in self.grid]
        empty = [key for key, values in self.grid.items() if not values]
        if empty:
            raise ValueError(f"grid.{empty[0]}: must have at least one value")
        return [
            experiment_from(_applied(self.base, zip(keys, values, strict=True)), f"suite {self.name}", changes)
            for values in itertools.product(*self.grid.values())
        ]


@dataclass(frozen=True)
class Watch:
    """What a caller hears of a suite: a step begins, a round is done, an attack goes on."""

    step: Callable[[int, int, str], None]
    round: Callable[[RoundDone], None]
    attack: Progress


def read_suite_file(path: Path) -> Suite:
    """Return the suite in the YAML file `path`; raises `ValueError` in one line."""
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: must be a mapping with the keys name, base and grid")
    try:
        return Suite(**plain)
    except (ValidationError, TypeError) as error:
        problem = first_problem(error, Suite) if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"{path}: {problem}") from None


def benchmark(suite: Suite, out: Path, watch: Watch | None = None, changes: Sequence[str] = ()) -> list[Cell]:
    """Run every cell of `suite` that `out` does not hold yet and return all cells, the failed ones too.

    A simulation is kept under the hash of what decides its numbers, an attack under the hash of its own
    configuration. `suite.json` lists all cells from the start and is written after each; a cell that fails is
    reported with its error and tried again by the next call. Raises `Interrupted` on Ctrl-C.
    """
    experiments = suite.experiments(changes)
    planned = [
        (experiment, label, f"runs/{experiment.simulation_key()}", _results(experiment))
        for experiment, label in zip(experiments, _labels(experiments), strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "suite.yaml", yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False))
    cells = {
        (relative, result): _cell(experiment, relative, label, result, _missing(out / relative, result))
        for experiment, label, relative, results in planned
        for result in results
    }
    _write(out, suite, cells.values())
    steps, step = len(planned) + len(cells), 0
    for experiment, label, relative, results in planned:
        _tell(watch, step, steps, f"{label}: simulation")
        error = _simulated(experiment, out / relative, watch)
        step += 1
        for result, attack in results.items():
            _tell(watch, step, steps, f"{label}: {result}")
            problem = error or (_attacked(experiment, out / relative, attack, result, watch) if attack else None)
            cells[relative, result] = _cell(experiment, relative, label, result, problem)
            _write(out, suite, cells.values())
            step += 1
    _tell(watch, steps, steps, "done")
    return list(cells.values())


def _results(experiment: Experiment) -> dict[str, Plugin | None]:
    """Return the attacks by the names of their results; a simulation without any is a cell of its own."""
    named: dict[str, Plugin | None] = {
        f"{name}-{_attack_key(experiment, attack)}": attack for name, attack in planned_attacks(experiment).items()
    }
    return named or {"": None}


def _missing(run: Path, result: str) -> str | None:
    """Return why a result cannot be read yet, or `None` when it can."""
    if result:
        done = (run / "attacks" / result / "attack.json").exists()
    else:
        done = RunDirectory(run).said().get("status") == "done"
    return None if done else "not run yet"


def _simulated(experiment: Experiment, path: Path, watch: Watch | None) -> str | None:
    """Simulate unless `path` holds the finished run; return the error in one line, or `None`."""
    hear = watch.round if watch else None
    try:
        if _missing(path, "") is None:
            return None
        if (path / "experiment.yaml").exists():
            # Its key names exactly what it computes, so one that was cut off goes on.
            go_on(RunDirectory.open(path), experiment, hear)
        else:
            simulate(experiment, path, hear)
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 (one cell's trouble, of whatever kind, is not the others')
        return one_line(error)
    return None


def _attacked(experiment: Experiment, path: Path, attack: Plugin, result: str, watch: Watch | None) -> str | None:
    """Attack unless the result is there; return the error in one line, or `None`."""
    if _missing(path, result) is None:
        return None
    try:
        assess(RunDirectory.open(path), experiment, attack, result, watch.attack if watch else None)
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 (one cell's trouble, of whatever kind, is not the others')
        return one_line(error)
    return None


def _attack_key(experiment: Experiment, attack: Plugin) -> str:
    decides = [attack.resolved("attacks"), experiment.targets.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]


def _cell(experiment: Experiment, relative: str, label: str, attack: str, error: str | None) -> Cell:
    return Cell(
        id=hashlib.sha256(f"{relative}/{attack}".encode()).hexdigest()[:16],
        run=relative,
        label=label,
        defences=tuple(defence.resolved("defences") for defence in experiment.defences),
        attack=attack,
        model=experiment.model.name,
        learners=experiment.partition.learners,
        status="failed" if error else "done",
        error=error,
    )


def _labels(experiments: list[Experiment]) -> list[str]:
    """Return what tells each experiment from the others: its defences, and whatever else the suite varies."""
    described = [dict(_flat(experiment.resolved())) for experiment in experiments]
    everywhere = set.intersection(*(set(flat.items()) for flat in described)) if described else set()
    labels = []
    for experiment, flat in zip(experiments, described, strict=True):
        varied = [
            f"{key.removesuffix('.name')} {value}"
            for key, value in flat.items()
            if (key, value) not in everywhere and not key.startswith("defences")
        ]
        labels.append(", ".join([_strength(experiment), *varied]))
    return labels


def _strength(experiment: Experiment) -> str:
    """Return the defences in words, such as `shared noise, gaussian, scale 1`."""
    name, scale = describe_defences([defence.resolved("defences") for defence in experiment.defences])
    return f"{name}, scale {scale}" if scale else name


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(node) if not isinstance(node, str) else node


def _applied(base: dict[str, Any], values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    for key, value in values:
        base = with_value(base, key, value)
    return base


def _tell(watch: Watch | None, done: int, total: int, what: str) -> None:
    if watch is not None:
        watch.step(done, total, what)


def _write(out: Path, suite: Suite, cells: Iterable[Cell]) -> None:
    content = {"name": suite.name, "cells": [cell.model_dump(mode="json") for cell in cells]}
    write_text(out / "suite.json", json.dumps(content, indent=2) + "\n")
