"""The experiment file: everything that decides what a simulation does, checked before anything starts."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metaleak.attacks.threat_model import ThreatModel
from metaleak.clients.device import Device
from metaleak.clients.faults import Faults
from metaleak.clients.federation import Federation
from metaleak.clients.partition import Partition, TaskShape
from metaleak.defenses import Accounted, Defense
from metaleak.deploy.config.nested import value_at, with_value
from metaleak.deploy.config.plain_yaml import parse_yaml
from metaleak.deploy.config.plugins import NO_CODE, Kind, Plugin, first_problem, settings_of
from metaleak.deploy.config.releases import most_sampled
from metaleak.deploy.errors import WrongUsage
from metaleak.server.learning.optimizer import OuterOptimizer

_STRICT = ConfigDict(frozen=True, extra="forbid")
MAX_ROUNDS = 200_000
"""The most rounds of a run."""
MAX_FILE = 1 << 17
"""Bytes of an experiment or suite file; reading YAML takes seconds for as many."""

_DEFAULT_NAMES = {"data": "mnist-5k", "model": "mlp", "rule": "maml"}
_SEVERAL = ("defenses", "attacks")
_NOT_SIMULATED = ("name", "attacks", "targets", "threat_model", "engine")
_KINDS: dict[str, Kind] = {
    "data": "datasets",
    "model": "models",
    "rule": "rules",
    "defenses": "defenses",
    "attacks": "attacks",
}


class ServerSettings(BaseModel):
    """How the meta-learner trains: `fraction` of the learners each round, one outer step a round.

    `start_from` is a safetensors file, such as another run's, with the parameters to start from. With `largest_norm`
    a learner's gradient is refused when its L2 norm, over all parameters together, is larger.
    """

    model_config = _STRICT

    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 30
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    optimizer: OuterOptimizer = OuterOptimizer()
    start_from: Path | None = None
    largest_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class EvaluationSettings(BaseModel):
    """Adapted accuracy on held-out tasks: `tasks` of them after every `every` rounds and at the end.

    `queries` are the query images a class; `inner_steps` defaults to the rule's own.
    """

    model_config = _STRICT

    every: Annotated[int, Field(ge=1)] = 10
    tasks: Annotated[int, Field(ge=2, le=100_000)] = 100
    queries: Annotated[int, Field(ge=1, le=1000)] = 10
    inner_steps: Annotated[int, Field(ge=1, le=100)] | None = None


class TargetSettings(BaseModel):
    """Which images an attack is asked about, in which recorded rounds.

    At most `members` images that learners hold are drawn, and at most `non_members` of the same classes that no
    learner does. Several `rounds` (from `round` on, or up to the last) are attacked together, of the learners that
    answered in all of them; what learners hold is told by the first.
    """

    model_config = _STRICT

    members: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    non_members: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    round: Annotated[int, Field(ge=1)] | Literal["first", "last"] = "first"
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 1


class RecordSettings(BaseModel):
    """What the curious server writes down: the first `rounds` rounds, or all (`null`); 0 is nothing."""

    model_config = _STRICT

    rounds: Annotated[int, Field(ge=0)] | None = None


class EngineSettings(BaseModel):
    """How the simulation runs; none of it decides what is computed, but for the last bits.

    `actors`: Ray actors (`null`: one a core; on a cluster always one a CPU of it). `learners_per_node`: how many
    learners a Flower node hosts; with `auto` any node computes for any learner, which is fastest. `chunk`: how many
    learners are computed at once (`auto`: measured, then kept for the run). `device`: where actors and attacks
    compute; `auto` shares out the GPUs when there are any. `timeout`: seconds to wait for a round's replies.
    `ray_address`: an existing Ray cluster, such as `auto`. `longest_hours`: an attack that by its first steps would
    take more is refused.
    """

    model_config = _STRICT

    actors: Annotated[int, Field(ge=1, le=4096)] | None = None
    learners_per_node: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    chunk: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    device: Device = "auto"
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    ray_address: str | None = None
    longest_hours: Annotated[float, Field(gt=0)] = 24.0


class Experiment(BaseModel):
    """One experiment: a federation, how it is trained, what is recorded, and what the attacks are asked."""

    model_config = _STRICT

    name: Annotated[str, Field(min_length=1, max_length=200)] = "experiment"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Plugin = Plugin(name=_DEFAULT_NAMES["data"])
    task: TaskShape = TaskShape()
    partition: Partition = Partition()
    model: Plugin = Plugin(name=_DEFAULT_NAMES["model"])
    rule: Plugin = Plugin(name=_DEFAULT_NAMES["rule"])
    defenses: tuple[Plugin, ...] = ()
    faults: Faults = Faults()
    server: ServerSettings = ServerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    record: RecordSettings = RecordSettings()
    engine: EngineSettings = EngineSettings()
    attacks: tuple[Plugin, ...] = (Plugin(name="query"), Plugin(name="support"))
    targets: TargetSettings = TargetSettings()
    threat_model: ThreatModel = ThreatModel()

    @model_validator(mode="after")
    def _everything_can_be_built(self) -> "Experiment":
        for key, kind, plugin in self._plugins():
            try:
                plugin.build(kind)
            except ValueError as error:
                raise ValueError(f"{key}.{error}") from None
        aggregated = any(defense.place == "aggregate" for defense in self.built_defenses())
        if self.server.largest_norm is not None and aggregated:
            raise ValueError("server.largest_norm: the server sees no learner's own norm under secure aggregation")
        if self.attacks and self.record.rounds == 0:
            raise ValueError("record.rounds: must be at least 1 for the attacks to have a record, got 0")
        recorded = min(self.server.rounds, self.record.rounds or self.server.rounds)
        if self.attacks and isinstance(self.targets.round, int) and self.targets.round > recorded:
            raise ValueError(
                f"targets.round: must be one of the {recorded} recorded rounds, got {self.targets.round}"
            )
        return self

    def _plugins(self) -> Iterable[tuple[str, Kind, Plugin]]:
        yield "data", "datasets", self.data
        yield "model", "models", self.model
        yield "rule", "rules", self.rule
        for place, defense in enumerate(self.defenses):
            yield f"defenses.{place}", "defenses", defense
        for place, attack in enumerate(self.attacks):
            yield f"attacks.{place}", "attacks", attack

    def federation(self) -> Federation:
        """Return the experiment's learners, with nothing loaded yet."""
        return Federation(
            seed=self.seed,
            data=self.data.build("datasets"),
            task=self.task,
            partition=self.partition,
            model=self.model.build("models"),
            rule=self.rule.build("rules"),
            defenses=self.built_defenses(),
            faults=self.faults,
        )

    def releases(self, rounds: int | None = None) -> int:
        """Return the most of the first `rounds` (default: all) in which any one learner is sampled, or a bound."""
        rounds = self.server.rounds if rounds is None else rounds
        return most_sampled(self.partition.learners, self.server.fraction, self.seed, rounds)

    def built_defenses(self) -> tuple[Defense, ...]:
        """Return the defenses, those with an accounted guarantee over all rounds that a learner may take part in."""
        built = [defense.build("defenses") for defense in self.defenses]
        for place, defense in enumerate(built):
            if isinstance(defense, Accounted):
                try:
                    built[place] = defense.for_releases(self.releases())
                except ValueError as error:
                    raise ValueError(f"defenses.{place}.{error}") from None
        return tuple(built)

    def resolved(self) -> dict[str, Any]:
        """Return the experiment as plain data with every default written out; `Experiment(**resolved)` is equal."""
        plain = self.model_dump(mode="json")
        for key in _DEFAULT_NAMES:
            plain[key] = getattr(self, key).resolved(_KINDS[key])
        for key in _SEVERAL:
            plain[key] = [one.resolved(_KINDS[key]) for one in getattr(self, key)]
        return plain

    def simulation_key(self) -> str:
        """Return a hash of everything that decides what a simulation computes; see `simulation_key`."""
        return simulation_key(self.resolved())


def simulation_key(resolved: Mapping[str, Any]) -> str:
    """Return a hash of everything in a resolved experiment that decides what a simulation computes.

    Attacks, targets, the threat model, the name, the engine, and where the data lie on this machine do not count.
    Nothing is built.
    """
    plain = {key: value for key, value in resolved.items() if key not in _NOT_SIMULATED}
    if isinstance(data := plain.get("data"), Mapping):
        plain["data"] = {key: value for key, value in data.items() if key not in ("data_dir", "download")}
    if isinstance(server := plain.get("server"), Mapping):
        # Without the limit nothing depends on it.
        server = {key: value for key, value in server.items() if (key, value) != ("largest_norm", None)}
        plain["server"] = server
        start = server.get("start_from")
        if isinstance(start, str) and Path(start).is_file():
            with open(start, "rb") as file:
                plain["server"] = {**server, "start_from": hashlib.file_digest(file, "sha256").hexdigest()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def experiment_from(plain: object, source: str, changes: Iterable[str] = (), code: bool = True) -> Experiment:
    """Return the experiment that `plain` (parsed YAML) describes, after `changes` like `server.rounds=50`.

    A name is short for `{name: ...}`, one defense or attack for a list of it. Without `code` a `module:Name` is
    refused before anything is imported. Raises `WrongUsage` in one line that names `source`, the key, the value and
    what is allowed.
    """
    if plain is None:
        plain = {}
    if not isinstance(plain, dict):
        raise WrongUsage(f"{source}: must be a mapping of keys to values, got {type(plain).__name__}")
    plain = {key: long_form(key, value) for key, value in plain.items()}
    # `model: {hidden: [32]}` or `--set model.hidden=[32]` keeps the default model's name.
    for key, name in _DEFAULT_NAMES.items():
        given = plain.get(key, {})
        if isinstance(given, dict):
            plain = {**plain, key: {"name": name, **given}}
    for change in changes:
        plain = changed(plain, change, code)
    try:
        return Experiment.model_validate(plain, context={NO_CODE: not code})
    except ValidationError as error:
        raise WrongUsage(f"{source}: {first_problem(error, Experiment)}") from None


def read_experiment(path: Path, changes: Iterable[str] = ()) -> Experiment:
    """Return the experiment in the YAML file `path`, after `changes`; raises `WrongUsage` in one line."""
    return experiment_from(read_yaml(path), str(path), changes)


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


def long_form(key: str, value: object) -> object:
    """Return the value of an experiment's `key` in full: `mlp` is short for `{name: mlp}`, one defense for a list."""
    if key in _SEVERAL:
        listed = [] if value is None else value if isinstance(value, list) else [value]
        return [{"name": one} if isinstance(one, str) else one for one in listed]
    return {"name": value} if key in _DEFAULT_NAMES and isinstance(value, str) else value


def changed(plain: dict[str, Any], change: str, code: bool = True) -> dict[str, Any]:
    """Return `plain` with one `key.subkey=value` applied; the value is read as YAML, lists are indexed by number.

    `rounds=50` is short for `server.rounds=50`. Another name, as in `model.name=conv4`, keeps of the settings that
    stand beside it those that it has, too; where it is a `module:Name`, only with `code`. Raises `WrongUsage` for a
    change that cannot be read.
    """
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise WrongUsage(f"--set {change!r}: must be key=value, for example server.rounds=50")
    if path.partition(".")[0] in ServerSettings.model_fields:
        path = f"server.{path}"
    try:
        value = long_form(path, parse_yaml(text))
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", error)
        raise WrongUsage(f"--set {change!r}: the value is not YAML: {problem}") from None
    keys = path.split(".")
    kind = _KINDS.get(keys[0])
    known = code or ":" not in str(value)
    if known and kind is not None and keys[-1] == "name" and len(keys) == (3 if keys[0] in _SEVERAL else 2):
        plain = _begun_anew(plain, keys, kind, value)
    return with_value(plain, path, value, f"--set {change!r}")


def _begun_anew(plain: dict[str, Any], keys: list[str], kind: Kind, name: object) -> dict[str, Any]:
    """Return `plain` without those settings beside the name at `keys` that what is called `name` does not have."""
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
