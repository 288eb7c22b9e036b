"""Running an experiment and attacking a run, in a call each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.results.schema import AttackResult
from metaleak.deploy.simulate import launch
from metaleak.deploy.simulate.run_directory import RunDirectory


def run_experiment(experiment: Experiment | Mapping[str, Any], out: Path | str) -> RunDirectory:
    """Simulate an experiment, or one from the keys of its YAML file, and return the run directory `out`.

    Raises `ValueError` in one line for a key or a value that is not allowed, or when `out` holds a run already.
    """
    if not isinstance(experiment, Experiment):
        experiment = experiment_from(dict(experiment), "the experiment")
    return launch.simulate(experiment, Path(out))


def attack_run(
    run: RunDirectory, attack: str, targets: Mapping[str, Any] | None = None, trust: bool = False, **settings: Any
) -> AttackResult:
    """Attack a run with the attack of this name, or `module:Name`, after its `settings`; return what was found.

    `targets` are the keys of that part of the YAML file, and otherwise the run's own. A run that names code of its
    own needs `trust`. The result is kept in `attacks/<name>/` of the run. Raises `ValueError` in one line for a
    setting that is not allowed, an attack that does not apply, or one whose result is there already.
    """
    experiment = run.experiment(trust=trust)
    if targets:
        plain = experiment.model_dump(mode="json")
        experiment = experiment_from({**plain, "targets": {**plain["targets"], **targets}}, "the targets")
    return assess(run, experiment, Plugin(name=attack, **settings))
