"""Running an experiment and attacking a run, each by one call."""

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
    """Simulate an experiment and return its run directory.

    >>> run = run_experiment({"data": "digits", "server": {"rounds": 5}}, "runs/digits")  # doctest: +SKIP

    Args:
        experiment: An `Experiment`, or a mapping with the keys of its YAML file.
        out: The run directory to write.

    Raises:
        ValueError: In one line, for a key or a value that is not allowed, or when `out` already holds a run.
    """
    if not isinstance(experiment, Experiment):
        experiment = experiment_from(dict(experiment), "the experiment")
    return launch.simulate(experiment, Path(out))


def attack_run(
    run: RunDirectory, attack: str, targets: Mapping[str, Any] | None = None, trust: bool = False, **settings: Any
) -> AttackResult:
    """Attack a run and return the result, which is also kept in `attacks/<name>/` of the run.

    >>> found = attack_run(run, "span", targets={"members": 60})  # doctest: +SKIP
    >>> found.evaluation.auc.value                                # doctest: +SKIP

    Args:
        run: The run to attack.
        attack: An attack by name, or `module:Name` of your own.
        targets: Keys of the part `targets` of the YAML file that replace those of the run.
        trust: Whether code that the run directory names (`module:Name`) may be imported and run.
        settings: The attack's settings, by name.

    Raises:
        ValueError: In one line, for a setting that is not allowed, an attack that does not apply to the run, or one
            whose result exists already.
    """
    experiment = run.experiment(trust=trust)
    if targets:
        plain = experiment.model_dump(mode="json")
        experiment = experiment_from({**plain, "targets": {**plain["targets"], **targets}}, "the targets")
    return assess(run, experiment, Plugin(name=attack, **settings))
