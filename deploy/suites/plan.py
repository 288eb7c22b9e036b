"""The plan of a suite: its cells, and the jobs that fill them, each once."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaleak.deploy.assess.applicability import reason_against
from metaleak.deploy.assess.assessment import planned_attacks
from metaleak.deploy.config.defense_words import describe_strength
from metaleak.deploy.config.experiment import Experiment, simulation_key
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.errors import WrongUsage
from metaleak.deploy.results.schema import MAX_CELLS, Cell
from metaleak.deploy.suites.jobs import Job

Key = tuple[str, str]
"""A run, relative to the suite's directory, and the name of an attack's result in it, empty for the simulation."""

_TOLD = ("seed", "data", "task", "partition", "model", "rule", "server", "faults", "targets")
"""The keys of an experiment that describe a cell even when it has no run."""


@dataclass(frozen=True)
class Plan:
    """The cells of a suite in its order, as they are before anything runs, and every job by its key.

    An attack waits for the simulation of its run, whose key has an empty result.
    """

    cells: Mapping[Key, Cell]
    jobs: Mapping[Key, Job]

    def waiting(self) -> dict[Key, Job]:
        """Return the jobs whose results are missing; a simulation comes before its attacks."""
        return {key: job for key, job in self.jobs.items() if not job.done}


def plan(experiments: list[Experiment], out: Path) -> Plan:
    """Return the plan of `experiments` in the suite's directory `out`.

    A simulation is kept under the hash of what decides its numbers, an attack under the hash of its own
    configuration and targets, so that experiments that differ in their attacks alone share a run.
    """
    cells: dict[Key, Cell] = {}
    jobs: dict[Key, Job] = {}
    # Once for each: whatever it asks about is built for it.
    resolved = [experiment.resolved() for experiment in experiments]
    for experiment, plain, label in zip(experiments, resolved, labels(resolved), strict=True):
        run = f"runs/{simulation_key(plain)}"
        path = out.resolve() / run
        attacks = {
            f"{name}-{_attack_key(experiment, attack)}": attack
            for name, attack in planned_attacks(experiment).items()
        }
        against = {name: reason_against(experiment, attack) for name, attack in attacks.items()}
        if len([name for name in attacks if against[name] is None]) or not attacks:
            jobs.setdefault((run, ""), Job(experiment, path))
        for name, attack in attacks.items():
            if against[name] is None:
                jobs[run, name] = Job(experiment, path, attack, name)
        # A simulation without any attack is a cell of its own.
        for name in attacks or [""]:
            cells[run, name] = _cell(plain, run, label, name, attacks.get(name), against.get(name))
    if len(cells) > MAX_CELLS:
        raise WrongUsage(f"the suite has {len(cells)} cells, more than the {MAX_CELLS} that are reported")
    return Plan(cells, jobs)


def _cell(
    resolved: Mapping[str, Any], run: str, label: str, name: str, attack: Plugin | None, against: str | None
) -> Cell:
    return Cell(
        id=hashlib.sha256(f"{run}/{name}".encode()).hexdigest()[:16],
        run=run,
        label=label,
        defenses=tuple(resolved["defenses"]),
        attack=name,
        attack_config={} if attack is None else attack.resolved("attacks"),
        experiment={key: resolved[key] for key in _TOLD},
        status="waiting" if against is None else "not applicable",
        error=against,
    )


def _attack_key(experiment: Experiment, attack: Plugin) -> str:
    targets = experiment.targets.model_dump(mode="json")
    for key in ("audit", "lpips"):
        if targets[key] is None:
            # Left out at its earlier value, so that the hashes of stored results stay the same.
            del targets[key]
    decides = [attack.resolved("attacks"), targets]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]


def labels(resolved: list[dict[str, Any]]) -> list[str]:
    """Return a label for each experiment: its defenses, and the values of everything else that the suite varies."""
    described = [dict(_flat(plain)) for plain in resolved]
    everywhere = set.intersection(*(set(flat.items()) for flat in described)) if described else set()
    labels = []
    for plain, flat in zip(resolved, described, strict=True):
        varied = [
            f"{key.removesuffix('.name')} {value}"
            for key, value in flat.items()
            if (key, value) not in everywhere and not key.startswith(("defenses", "attacks"))
        ]
        labels.append(", ".join([describe_strength(plain["defenses"]), *varied]))
    return labels


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(node) if not isinstance(node, str) else node
