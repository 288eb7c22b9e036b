"""Reading what runs and suites left on disk: checked for size and shape before memory is taken."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metaleak.attacks.evaluation.membership import Estimate, Evaluation
from metaleak.deploy.assess.privacy import Cost, Privacy
from metaleak.deploy.config.experiment import MAX_ROUNDS
from metaleak.deploy.config.reading import MAX_FILE, in_long_form, yaml_from
from metaleak.deploy.printable import printable
from metaleak.deploy.results.arrays import (
    MEGABYTE,
    Bools,
    Gallery,
    Scores,
    read_gallery,
    read_scores,
)
from metaleak.server.record.plain_file import is_plain, naming, plain_folders, read_plain

MAX_JSON_FILE = MEGABYTE
MAX_METRICS_FILE = 64 * MEGABYTE
MAX_SUITE_FILE = 64 * MEGABYTE
MAX_CELLS = 10_000
MAX_ATTACKS = 10_000

SUITE_FILE = "suite.json"

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

    `defenses`, `attack_config` and `experiment` (its data, task, model, targets and the like) are what was set,
    defaults included. `status` is `waiting` until it is run; `not applicable` when the attack cannot be made on
    such a model; then and when it `failed`, `error` says why.
    """

    id: str
    run: str
    label: str = ""
    defenses: tuple[dict[str, Any], ...] = ()
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
    cells: Annotated[tuple[Cell, ...], Field(max_length=MAX_CELLS)] = ()


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
    return read_suite(path) if is_plain(path, SUITE_FILE) else read_run(path)


def read_suite(path: Path) -> SuiteResult:
    """Return the suite in directory `path`, each of its runs read once.

    A run that is not there is left out. Raises `ValueError` for one that is damaged, lies outside `path` or behind a
    link, and for more cells than are read.
    """
    suite = _json(path, SUITE_FILE, _SuiteFile, MAX_SUITE_FILE)
    if suite is None:
        raise ValueError(f"{path / SUITE_FILE}: no such file")
    runs = {}
    for relative in dict.fromkeys(cell.run for cell in suite.cells):
        if Path(relative).is_absolute() or not {"..", ""}.isdisjoint(relative.split("/")):
            raise ValueError(f"{path / SUITE_FILE}: run {relative!r} lies outside the suite's directory")
        # A link is there too, and refused where it is opened.
        if (path / relative).exists() or (path / relative).is_symlink():
            runs[relative] = read_run(path, relative)
    return SuiteResult(path, suite.name, suite.cells, runs)


def read_run(root: Path, inside: str = "") -> RunResult:
    """Return the run in the directory `root`, or `inside` it; missing parts are empty.

    Raises `ValueError` for a damaged part, and for one that is a link or lies behind one.
    """
    path = root / inside
    if not path.is_dir():
        raise ValueError(f"{path}: no such directory")
    run = _json(root, _name(inside, "run.json"), _RunFile)
    written = _bytes(root, _name(inside, "experiment.yaml"), MAX_FILE)
    if run is None and written is None:
        raise ValueError(f"{path}: neither a run (run.json, experiment.yaml) nor a suite ({SUITE_FILE})")
    run, written = run or _RunFile(), written or b""
    config = yaml_from(written, path / "experiment.yaml")
    attacks = plain_folders(root, _name(inside, "attacks"), MAX_ATTACKS)
    return RunResult(
        path=path,
        config=in_long_form(config, str(path / "experiment.yaml")),
        config_text=written.decode(),
        status=run.status,
        started=run.started,
        seconds=run.seconds,
        seed=run.seed,
        versions=run.versions,
        error=run.error,
        rounds=_rounds(root, _name(inside, "metrics.jsonl"), finished=run.status == "done"),
        attacks=tuple(read_attack(root, _name(inside, f"attacks/{name}")) for name in attacks),
    )


def read_attack(root: Path, inside: str = "") -> AttackResult:
    """Return the attack in the directory `root`, or `inside` it, which is named after it; see `read_run`."""
    described = _json(root, _name(inside, "attack.json"), _AttackFile) or _AttackFile()
    scores, member = read_scores(root, _name(inside, "scores.parquet"))
    return AttackResult(
        name=str(printable((root / inside).name)),
        config=described.attack,
        asks=described.asks,
        round=described.round,
        rounds=described.rounds,
        knows=described.knows,
        seconds=described.seconds,
        evaluation=described.evaluation,
        scores=scores,
        member=member,
        gallery=read_gallery(root, _name(inside, "gallery.safetensors")),
        statistics=described.statistics,
        privacy=described.privacy,
        cost=described.cost,
        targets=described.targets,
    )


def last_round(run: Path) -> Mapping[str, Any]:
    """Return the last whole line of the run's `metrics.jsonl`, empty when there is none."""
    lines = (_bytes(run, "metrics.jsonl", MAX_METRICS_FILE) or b"").splitlines()
    return dict(json.loads(lines[-1])) if lines else {}


def _name(inside: str, name: str) -> str:
    return f"{inside}/{name}" if inside else name


def _bytes(root: Path, name: str, limit: int = MAX_JSON_FILE) -> bytes | None:
    """Return the content of the plain file `root/name`, `None` when it is not there."""
    try:
        return read_plain(root, name, limit)
    except FileNotFoundError:
        return None


def _text(path: Path, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def _json(root: Path, name: str, shape: type[Shape], limit: int = MAX_JSON_FILE) -> Shape | None:
    raw = _bytes(root, name, limit)
    if raw is None:
        return None
    path = root / name
    try:
        return shape.model_validate(printable(json.loads(_text(path, raw))))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {_first(error)}") from error


def _rounds(root: Path, name: str, finished: bool) -> tuple[Round, ...]:
    lines = (_bytes(root, name, MAX_METRICS_FILE) or b"").split(b"\n")
    # A run that was stopped may have been in the middle of its last line: everything before it is good.
    last = lines.pop()
    if last and finished:
        lines.append(last)
    rounds = []
    with naming(root, name):
        if len(lines) > MAX_ROUNDS:
            raise ValueError(f"{len(lines)} lines, more than the {MAX_ROUNDS} that are read")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                rounds.append(Round.model_validate_json(line))
            except ValidationError as error:
                raise ValueError(f"line {number}: {_first(error)}") from error
    return tuple(rounds)


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    return f"{key}: {problem['msg']}" if key else problem["msg"]
