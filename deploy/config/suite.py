"""A suite: a grid of experiments around a base, as read from its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metaleak.deploy.config.axes import applied, combinations
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import first_problem
from metaleak.deploy.config.reading import experiment_from, read_yaml
from metaleak.deploy.errors import WrongUsage


class Suite(BaseModel):
    """A base experiment and the axes along which it is varied; the suite consists of all combinations.

    With the `kind` `pretraining` the base is a study of pretraining, and its keys are the axes.

    `grid` maps a key of the experiment, such as `defenses`, `model` or `server.rounds`, to the list of its values:

    - `models`, `rules`, `learners`, `ways`, `shots` and `queries` are short for `model`, `rule`,
      `partition.learners`, `task.ways`, `task.shots` and `task.queries`;
    - a name is short for `{name: ...}`, a single defense or attack for a list of one, and null for none;
    - `{each: [...]}` in the place of any setting stands for each of these values in turn;
    - the values of the axis `settings` are mappings whose keys (short or dotted) change together;
    - so are values of `defenses` without a `name`: structural defenses, such as `{rule.name: fomaml}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "suite"
    kind: Literal["experiments", "pretraining"] = "experiments"
    base: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)

    def experiments(self, changes: Sequence[str] = ()) -> list[Experiment]:
        """Return one experiment a combination; raises `ValueError` in one line when one is wrong.

        `changes` such as `server.rounds=5` are applied to each of them.
        """
        return [
            experiment_from(applied(self.base, chosen), f"suite {self.name}", changes)
            for chosen in combinations(self.grid)
        ]


def read_suite_file(path: Path) -> Suite:
    """Return the suite in the YAML file `path`; raises `ValueError` in one line."""
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise WrongUsage(f"{path}: must be a mapping with the keys name, base and grid")
    try:
        return Suite(**plain)
    except (ValidationError, TypeError) as error:
        problem = first_problem(error, Suite) if isinstance(error, ValidationError) else str(error)
        raise WrongUsage(f"{path}: {problem}") from None
