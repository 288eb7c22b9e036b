"""Reading what runs and suites left on disk: checked for size and shape before memory is taken."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metaleak.attacks.evaluation import Estimate, Evaluation
from metaleak.deploy.plain_yaml import parse_yaml
from metaleak.deploy.privacy import Cost, Privacy
from metaleak.deploy.result_arrays import (
    MEGABYTE,
    Bools,
    Gallery,
    Scores,
    read_gallery,
    read_scores,
    sized,
)

MAX_CONFIG_FILE = MEGABYTE
MAX_METRICS_FILE = 64 * MEGABYTE
MAX_SUITE_FILE = 64 * MEGABYTE

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Shape = TypeVar("Shape", bound=BaseModel)


class _Read(BaseModel):
    """A piece of a file; fields that a later version adds are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Round(_Read):
    """One line of `metrics.jsonl`: loss and adapted accuracy in [0, 1] on held-out tasks, if measured."""

    round: Annotated[int, Field(ge=0)]
    loss: float | None = None
    learners: int = 0
    seconds: float = 0.0
    accuracy: Fraction | None = None
    accuracy_low: Fraction | None = None
    accuracy_high: Fraction | None = None


class Cell(_Read):
    """One cell of `suite.json`: an attack on a run, or the run alone; several cells may share a run.

    `defences`, `attack_config` and `experiment` (its data, task, model, targets and the like) are what was set,
    defaults included. `status` is `waiting` until it is run; `not applicable` when the attack cannot be made on
    such a model; then and when it `failed`, `error` says why.
    """

    id: str
    run: str
    label: str = ""
    defences: tuple[dict[str, Any], ...] = ()
    attack: str
    attack_config: dict[str, Any] = {}
    experiment: dict[str, Any] = {}
    status: Literal["waiting", "done", "failed", "not applicable"] = "done"
    error: str | None = None


class _RunFile(_Read):
    status: Literal["done", "running", "failed", "interrupted"] = "running"
    started: str | None = None
    finished: str | None = None
    seconds: float | None = None
    seed: int | None = None
    versions: dict[str, str] = {}
    error: str | None = None


class _AttackFile(_Read):
    attack: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    asks: Literal["query", "support"] | None = None
    round: int | None = None
    rounds: int | None = None
    knows: str = ""
    seconds: float | None = None
    evaluation: Evaluation | None = None
    statistics: dict[str, Estimate] = {}
    privacy: Privacy | None = None
    cost: Cost | None = None


class _SuiteFile(_Read):
    name: str = "suite"
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True, eq=False)
class AttackResult:
    """One attack on one run; `scores (T,)` and `member (T,)` are empty when only a summary is on disk."""

    name: str
    config: Mapping[str, Any]
    asks: str | None
    round: int | None
    rounds: int | None
    knows: str
    seconds: float | None
    evaluation: Evaluation | None
    scores: Scores
    member: Bools
    gallery: Gallery | None
    statistics: Mapping[str, Estimate]
    privacy: Privacy | None = None
    cost: Cost | None = None
    targets: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What the attack is; `name` is that of its result, which may carry more."""
        return str(self.config.get("name") or self.name)


@dataclass(frozen=True, eq=False)
class RunResult:
    """One run directory: its configuration, how it went, what was measured, what the attacks found."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    status: str
    started: str | None
    seconds: float | None
    seed: int | None
    versions: Mapping[str, str]
    error: str | None
    rounds: tuple[Round, ...]
    attacks: tuple[AttackResult, ...]

    @property
    def name(self) -> str:
        """The experiment's name, or the directory's."""
        return str(self.config.get("name") or self.path.name)

    @property
    def accuracy(self) -> Estimate | None:
        """The last measured adapted accuracy; `None` when it was never measured."""
        for line in reversed(self.rounds):
            if (value := line.accuracy) is not None:
                low = value if line.accuracy_low is None else line.accuracy_low
                high = value if line.accuracy_high is None else line.accuracy_high
                return Estimate(value=value, low=low, high=high)
        return None


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """One suite directory: its cells and the runs that exist, by the relative path that the cells give."""

    path: Path
    name: str
    cells: tuple[Cell, ...]
    runs: Mapping[str, RunResult]


def read(path: Path) -> RunResult | SuiteResult:
    """Return the run or suite in directory `path`; `ValueError` when it holds neither, or a damaged part."""
    if (path / "suite.json").is_file():
        return read_suite(path)
    return read_run(path)


def read_suite(path: Path) -> SuiteResult:
    """Return the suite in directory `path`, each of its runs read once.

    A run that is not there is left out; one that is damaged, or lies outside `path`, raises `ValueError`.
    """
    suite = _json(path / "suite.json", _SuiteFile, MAX_SUITE_FILE)
    runs = {}
    for relative in dict.fromkeys(cell.run for cell in suite.cells):
        inside = (path / relative).resolve()
        if not inside.is_relative_to(path.resolve()):
            raise ValueError(f"{path / 'suite.json'}: run {relative!r} lies outside the suite's directory")
        if inside.is_dir():
            runs[relative] = read_run(inside)
    return SuiteResult(path, suite.name, suite.cells, runs)


def read_run(path: Path) -> RunResult:
    """Return the run in directory `path`; missing parts are empty, damaged ones raise `ValueError`."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such directory")
    if not any((path / name).is_file() for name in ("run.json", "experiment.yaml")):
        raise ValueError(f"{path}: neither a run (run.json, experiment.yaml) nor a suite (suite.json)")
    run = _json(path / "run.json", _RunFile) if (path / "run.json").exists() else _RunFile()
    text = _text(path / "experiment.yaml") if (path / "experiment.yaml").exists() else ""
    folder = path / "attacks"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    return RunResult(
        path=path,
        config=_yaml(path / "experiment.yaml", text),
        config_text=text,
        status=run.status,
        started=run.started,
        seconds=run.seconds,
        seed=run.seed,
        versions=run.versions,
        error=run.error,
        rounds=_rounds(path / "metrics.jsonl", finished=run.status == "done"),
        attacks=tuple(read_attack(folder / name) for name in names if not name.startswith(".")),
    )


def read_attack(path: Path) -> AttackResult:
    """Return the attack in directory `path`, which is named after it."""
    described = _json(path / "attack.json", _AttackFile) if (path / "attack.json").exists() else _AttackFile()
    scores, member = read_scores(path / "scores.parquet")
    return AttackResult(
        name=path.name,
        config=described.attack,
        asks=described.asks,
        round=described.round,
        rounds=described.rounds,
        knows=described.knows,
        seconds=described.seconds,
        evaluation=described.evaluation,
        scores=scores,
        member=member,
        gallery=read_gallery(path / "gallery.safetensors"),
        statistics=described.statistics,
        privacy=described.privacy,
        cost=described.cost,
        targets=described.targets,
    )


def _text(path: Path, limit: int = MAX_CONFIG_FILE) -> str:
    try:
        return sized(path, limit).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def _json(path: Path, shape: type[Shape], limit: int = MAX_CONFIG_FILE) -> Shape:
    try:
        return shape.model_validate(json.loads(_text(path, limit)))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {_first(error)}") from error


def _yaml(path: Path, text: str) -> Mapping[str, Any]:
    try:
        config = parse_yaml(text) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a mapping is expected, not {type(config).__name__}")
    return config


def _rounds(path: Path, finished: bool) -> tuple[Round, ...]:
    if not path.exists():
        return ()
    lines = _text(path, MAX_METRICS_FILE).split("\n")
    # A run that was stopped may have been in the middle of its last line: everything before it is good.
    last = lines.pop()
    if last and finished:
        lines.append(last)
    rounds = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rounds.append(Round.model_validate(json.loads(line)))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
        except ValidationError as error:
            raise ValueError(f"{path}: line {number}: {_first(error)}") from error
    return tuple(rounds)


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    return f"{key}: {problem['msg']}" if key else problem["msg"]
