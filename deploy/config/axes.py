"""The axes of a suite: short names, short values, and `each`, which lists several values of a setting."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.nested import with_value
from metaleak.deploy.config.reading import long_form
from metaleak.deploy.config.unknown import unknown
from metaleak.deploy.errors import WrongUsage

SHORT = {
    "models": "model",
    "rules": "rule",
    "learners": "partition.learners",
    "ways": "task.ways",
    "shots": "task.shots",
    "queries": "task.queries",
}
"""Short names of an experiment's keys in a suite."""


@dataclass(frozen=True)
class Axes:
    """The names that an axis may have, up to their first dot, and the keys that `short` names stand for."""

    names: frozenset[str]
    short: Mapping[str, str] = field(default_factory=dict)


OF_EXPERIMENTS = Axes(frozenset({*Experiment.model_fields, *SHORT, "settings"}), SHORT)

EACH = "each"

LARGEST_SUITE = 10_000
"""The most experiments of one suite."""

Changes = Mapping[str, Any]
"""Values by dotted key of the experiment, which are set together."""


def combinations(grid: Mapping[str, list[Any]], axes: Axes = OF_EXPERIMENTS) -> Iterator[list[Changes]]:
    """Yield what each combination of the axes sets, one entry per axis, the last axis varying fastest.

    Raises `ValueError` that begins with the axis at fault, and for more than `LARGEST_SUITE` of them, which are
    counted before any is made.
    """
    count = math.prod(sum(_count(value) for value in values) for values in grid.values())
    if count > LARGEST_SUITE:
        raise WrongUsage(f"grid: multiplies out to {count:.4g} experiments, more than the {LARGEST_SUITE} allowed")
    return (list(chosen) for chosen in itertools.product(*(_choices(axis, grid[axis], axes) for axis in grid)))


def applied(plain: dict[str, Any], chosen: list[Changes]) -> dict[str, Any]:
    """Return the experiment `plain`, in which names may be short too, with the `chosen` values in their places."""
    plain = {key: long_form(key, value) for key, value in plain.items()}
    for changes in chosen:
        for key, value in changes.items():
            plain = with_value(plain, key, value)
    return plain


def _choices(axis: str, values: list[Any], axes: Axes) -> list[Changes]:
    found = [_changes(axis, one, axes) for value in values for one in multiplied(value, f"grid.{axis}")]
    if not found:
        raise WrongUsage(f"grid.{axis}: must have at least one value")
    return found


def _changes(axis: str, value: object, axes: Axes) -> Changes:
    """Return what one value of an axis sets: a key of its own, or those that it lists."""
    first = axis.partition(".")[0]
    if first not in axes.names:
        raise WrongUsage(f"grid: {unknown('key', first, axes.names)}")
    if axis == "settings":
        if not isinstance(value, Mapping):
            raise WrongUsage(f"grid.settings: must be mappings of keys to values, got {value!r}")
        return _listed(value, axes)
    if axis == "defenses" and isinstance(value, Mapping) and "name" not in value:
        # A structural defense: another rule or model protects, perhaps together with defenses.
        return {"defenses": [], **_listed(value, axes)}
    return _listed({axis: value}, axes)


def _listed(values: Mapping[str, Any], axes: Axes) -> Changes:
    named = {axes.short.get(key, key): value for key, value in values.items()}
    return {key: long_form(key, value) for key, value in named.items()}


def _count(value: object) -> int:
    """Return how many values `multiplied` returns for `value`, at least 1; errors in it are raised there."""
    if isinstance(value, Mapping):
        listed = value.get(EACH)
        if isinstance(listed, list):
            return max(1, sum(_count(inner) for inner in listed))
        return math.prod(_count(inner) for inner in value.values())
    return math.prod(_count(inner) for inner in value) if isinstance(value, list) else 1


def multiplied(value: object, source: str) -> list[Any]:
    """Return `value` once for every combination of what its `{each: [...]}` list, wherever they stand in it.

    `{scale: {each: [1, 2]}}` is `{scale: 1}` and `{scale: 2}`. Raises `ValueError`, naming `source`, when `each` is
    not a list with something in it or has a key beside it.
    """
    if isinstance(value, Mapping):
        if EACH in value:
            listed = value[EACH]
            if len(value) > 1 or not isinstance(listed, list) or not listed:
                raise WrongUsage(
                    f"{source}: each must stand alone and be a list with at least one value, got {value}"
                )
            return [one for inner in listed for one in multiplied(inner, source)]
        rows = itertools.product(*(multiplied(inner, source) for inner in value.values()))
        return [dict(zip(value, row, strict=True)) for row in rows]
    if isinstance(value, list):
        return [list(row) for row in itertools.product(*(multiplied(inner, source) for inner in value))]
    return [value]
