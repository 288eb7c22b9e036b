"""Reading studies of pretraining from YAML files, and those of a suite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from metaleak.deploy.config.axes import Axes, applied, combinations
from metaleak.deploy.config.nested import with_value
from metaleak.deploy.config.plain_yaml import parse_yaml
from metaleak.deploy.config.plugins import first_problem
from metaleak.deploy.config.reading import read_yaml
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.errors import WrongUsage
from metaleak.deploy.pretraining.study import Study

# All studies of a suite share one map of models, so the place of computation is not an axis.
_OF_STUDIES = Axes(frozenset({*Study.model_fields, "settings"} - {"engine"}))


def read_study(file: Path, changes: tuple[str, ...] = ()) -> Study:
    """Return the study in the YAML `file` after `changes` like `models=65`; raises `WrongUsage` in one line."""
    plain: Any = read_yaml(file)
    if not isinstance(plain, dict):
        raise WrongUsage(f"{file}: must be a mapping of keys to values")
    return study_from(_changed(_in_long_form(plain), changes), str(file))


def study_from(plain: dict[str, Any], source: str) -> Study:
    """Return the study that `plain` (parsed YAML) describes; a name is short for `{name: ...}`."""
    try:
        return Study.model_validate(_in_long_form(plain))
    except ValidationError as error:
        raise WrongUsage(f"{source}: {first_problem(error, Study)}") from None


def studies_of(suite: Suite, changes: Sequence[str] = ()) -> list[Study]:
    """Return the studies of a `suite` of pretraining, after `changes`: one a combination and finetuning.

    A change of `data.` is one of the pool's and of the downstream data. Raises `WrongUsage` in one line.
    """
    base = _in_long_form(suite.base)
    both = [
        [f"{part}.{change}" for part in ("pool", "downstream")] if change.startswith("data.") else [change]
        for change in changes
    ]
    told = [change for several in both for change in several]
    found = []
    for chosen in combinations(suite.grid, _OF_STUDIES):
        study = study_from(_changed(_in_long_form(applied(base, chosen)), told), f"suite {suite.name}")
        found += [
            study.model_copy(update={"finetunings": {name: finetuning}})
            for name, finetuning in study.finetunings.items()
        ]
    return found


def _changed(plain: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path:
            raise WrongUsage(f"--set {change!r}: must be key=value, for example models=65")
        try:
            plain = with_value(plain, path, parse_yaml(text), f"--set {change!r}")
        except yaml.YAMLError as error:
            raise WrongUsage(f"--set {change!r}: the value is not YAML: {error}") from None
    return plain


def _in_long_form(plain: dict[str, Any]) -> dict[str, Any]:
    plain = dict(plain)
    if isinstance(plain.get("model"), str):
        plain["model"] = {"name": plain["model"]}
    attacks = plain.get("attacks")
    if isinstance(attacks, list):
        plain["attacks"] = [{"name": one} if isinstance(one, str) else one for one in attacks]
    for key in ("pool", "downstream"):
        part = plain.get(key)
        if isinstance(part, dict) and isinstance(part.get("data"), str):
            plain[key] = {**part, "data": {"name": part["data"]}}
    return plain
