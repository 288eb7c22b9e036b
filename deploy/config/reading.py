"""Reading experiments from YAML files and from changes such as `server.rounds=50`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from metaleak.deploy.config.experiment import DEFAULT_NAMES, KINDS, SEVERAL, Experiment, ServerSettings
from metaleak.deploy.config.nested import value_at, with_value
from metaleak.deploy.config.plain_yaml import parse_yaml
from metaleak.deploy.config.plugins import Kind, Plugin, first_problem, is_code, settings_of
from metaleak.deploy.config.unknown import unknown
from metaleak.deploy.errors import WrongUsage

MAX_FILE = 1 << 17
"""The most bytes of an experiment or suite file, for which reading YAML takes seconds."""


def read_experiment(path: Path, changes: Iterable[str] = ()) -> Experiment:
    """Return the experiment in the YAML file `path`, after `changes`; raises `WrongUsage` in one line."""
    return experiment_from(read_yaml(path), str(path), changes)


def experiment_from(plain: object, source: str, changes: Iterable[str] = (), code: bool = True) -> Experiment:
    """Return the experiment that `plain` (parsed YAML) describes, after `changes` like `server.rounds=50`.

    A name is short for `{name: ...}`, one defense or attack for a list of it. Without `code` a `module:Name` is
    refused before anything is imported. Raises `WrongUsage` in one line that names `source`, the key, the value and
    what is allowed.
    """
    plain = in_long_form(plain, source)
    # `model: {hidden: [32]}` or `--set model.hidden=[32]` keeps the default model's name.
    for key, name in DEFAULT_NAMES.items():
        given = plain.get(key, {})
        if isinstance(given, dict):
            plain = {**plain, key: {"name": name, **given}}
    for change in changes:
        plain = changed(plain, change, code)
    if not code:
        refuse_code(plain, source)
    try:
        return Experiment.model_validate(plain)
    except ValidationError as error:
        raise WrongUsage(f"{source}: {first_problem(error, Experiment)}") from None


def refuse_code(plain: object, source: str) -> None:
    """Raise `WrongUsage` when the experiment `plain` (parsed YAML) names a `module:Name`; nothing is imported."""
    for key, value in in_long_form(plain, source).items():
        listed = value if key in SEVERAL and isinstance(value, list) else [value]
        for place, one in enumerate(listed if key in KINDS else []):
            name = one.get("name") if isinstance(one, dict) else None
            if is_code(name):
                where = f"{key}.{place}" if key in SEVERAL else key
                raise WrongUsage(
                    f"{source}: {where}.name: is code that only its author's word makes safe; --trust "
                    f"(or trust=True) lets it run, got {name!r}"
                )


def in_long_form(plain: object, source: str) -> dict[str, Any]:
    """Return the experiment `plain` (parsed YAML) with every short name in full.

    Raises `WrongUsage`, naming `source`, for what is not a mapping.
    """
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise WrongUsage(f"{source}: must be a mapping of keys to values, got {type(plain).__name__}")
    return {key: long_form(key, value) for key, value in plain.items()}


def long_form(key: str, value: object) -> object:
    """Return the value of an experiment's `key` in full: `mlp` is short for `{name: mlp}`, one defense for a list."""
    if key in SEVERAL:
        listed = [] if value is None else value if isinstance(value, list) else [value]
        return [{"name": one} if isinstance(one, str) else one for one in listed]
    return {"name": value} if key in DEFAULT_NAMES and isinstance(value, str) else value


def read_yaml(path: Path) -> object:
    """Return what the YAML file holds, as plain data; raises `WrongUsage` in one line."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise WrongUsage(f"{path}: {error.strerror or error}") from None
    if len(raw) > MAX_FILE:
        raise WrongUsage(f"{path}: more than the {MAX_FILE} bytes that are read")
    try:
        return yaml_from(raw, path)
    except ValueError as error:
        raise WrongUsage(str(error)) from None


def yaml_from(raw: bytes, path: Path) -> object:
    """Return what YAML says, as plain data; raises `ValueError` in one line that names its `path`."""
    try:
        return parse_yaml(raw.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path}: is not YAML{where}: {getattr(error, 'problem', error)}") from None


def changed(plain: dict[str, Any], change: str, code: bool = True) -> dict[str, Any]:
    """Return `plain` with one `key.subkey=value` applied; the value is read as YAML, lists are indexed by number.

    `rounds=50` is short for `server.rounds=50`. Another name, as in `model.name=conv4`, keeps those settings beside
    it that the new plug-in has, too; where it is a `module:Name`, only with `code`. Raises `WrongUsage` for a
    change that cannot be read.
    """
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise WrongUsage(f"--set {change!r}: must be key=value, for example server.rounds=50")
    first = path.partition(".")[0]
    if first not in Experiment.model_fields and first not in ServerSettings.model_fields:
        known = {*Experiment.model_fields, *ServerSettings.model_fields}
        raise WrongUsage(f"--set {change!r}: {unknown('key', first, known)}")
    if first in ServerSettings.model_fields:
        path = f"server.{path}"
    try:
        value = long_form(path, parse_yaml(text))
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", error)
        raise WrongUsage(f"--set {change!r}: the value is not YAML: {problem}") from None
    keys = path.split(".")
    kind = KINDS.get(keys[0])
    importable = code or not is_code(value)
    if importable and kind is not None and keys[-1] == "name" and len(keys) == (3 if keys[0] in SEVERAL else 2):
        plain = _begun_anew(plain, keys, kind, value)
    return with_value(plain, path, value, f"--set {change!r}")


def attack_from(name: str, changes: Iterable[str]) -> Plugin:
    """Return the attack called `name` after `changes` like `iterations=50`; raises `WrongUsage` in one line."""
    plain: dict[str, Any] = {"attacks": [{"name": name}]}
    for change in changes:
        plain = changed(plain, f"attacks.0.{change}")
    attack = Plugin(**plain["attacks"][0])
    try:
        attack.built("attacks")
    except ValueError as error:
        raise WrongUsage(f"attack {name}: {error}") from None
    return attack


def _begun_anew(plain: dict[str, Any], keys: list[str], kind: Kind, name: object) -> dict[str, Any]:
    """Return `plain` without those settings beside the name at `keys` that the plug-in `name` does not have."""
    before = value_at(plain, keys[:-1])
    if not isinstance(before, dict) or before.get("name") == name:
        return plain
    try:
        known = settings_of(kind, str(name))
    except ValueError:
        # A name that stands for nothing is refused with the experiment.
        return plain
    kept = {key: value for key, value in before.items() if key in ("name", *known)}
    return with_value(plain, ".".join(keys[:-1]), kept)
