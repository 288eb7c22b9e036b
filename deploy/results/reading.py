"""Reading the files of runs and suites; sizes and shapes are checked before memory is taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.deploy.config.experiment import MAX_ROUNDS
from metaleak.deploy.config.reading import MAX_FILE, in_long_form, yaml_from
from metaleak.deploy.printable import printable
from metaleak.deploy.results.arrays import (
    MEGABYTE,
    Bools,
    Gallery,
    Pairs,
    Scores,
    read_gallery,
    read_pairs,
    read_scores,
)
from metaleak.deploy.results.json_file import first_complaint, read_json
from metaleak.deploy.results.schema import AttackResult, Cell, Round, RunState, SuiteState
from metaleak.deploy.results.study_file import STUDY_FILE, described_study
from metaleak.server.record.plain_file import is_plain, naming, plain_folders, read_plain

MAX_METRICS_FILE = 64 * MEGABYTE
MAX_SUITE_FILE = 64 * MEGABYTE
MAX_ATTACKS = 10_000

SUITE_FILE = "suite.json"


@dataclass(frozen=True, eq=False)
class AttackFiles:
    """The files of one attack on one run, in the directory `name`.

    `scores (T,)` and `member (T,)` are empty when only a summary is on disk.
    """

    name: str
    result: AttackResult
    scores: Scores
    member: Bools
    gallery: Gallery | None
    pairs: Pairs | None = None

    @property
    def kind(self) -> str:
        """The attack's own name; `name` is that of its result, which may have a suffix."""
        return str(self.result.attack.get("name") or self.name)


class Results(Protocol):
    """The subject of a report: `runs` by their path, and the `cells` of a suite, `None` for a single run."""

    @property
    def name(self) -> str:
        """The title of its report."""
        ...

    @property
    def runs(self) -> Mapping[str, "RunResult"]:
        """The runs that exist, by their path relative to what was read."""
        ...

    @property
    def cells(self) -> tuple[Cell, ...] | None:
        """The cells of a suite."""
        ...


@dataclass(frozen=True, eq=False)
class RunResult:
    """One run directory: its configuration, state, measured rounds, and the attacks' results."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    state: RunState
    rounds: tuple[Round, ...]
    attacks: tuple[AttackFiles, ...]

    @property
    def name(self) -> str:
        """The experiment's name, or the directory's."""
        return str(self.config.get("name") or self.path.name)

    @property
    def runs(self) -> Mapping[str, "RunResult"]:
        """The run itself."""
        return {".": self}

    @property
    def cells(self) -> None:
        """`None`, since a single run has no cells."""
        return

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


def read(path: Path) -> Results:
    """Return the run or suite in directory `path`; `ValueError` when it holds neither, or a damaged part."""
    return read_suite(path) if is_plain(path, SUITE_FILE) else read_run(path)


def read_suite(path: Path) -> SuiteResult:
    """Return the suite in directory `path`, each of its runs read once.

    A run that is not there is left out. Raises `ValueError` for one that is damaged, lies outside `path` or behind a
    link, and for more cells than are read.
    """
    suite = read_json(path, SUITE_FILE, SuiteState, MAX_SUITE_FILE)
    if suite is None:
        raise ValueError(f"{path / SUITE_FILE}: no such file")
    runs = {}
    for relative in dict.fromkeys(cell.run for cell in suite.cells):
        if Path(relative).is_absolute() or not {"..", ""}.isdisjoint(relative.split("/")):
            raise ValueError(f"{path / SUITE_FILE}: run {relative!r} lies outside the suite's directory")
        # A link counts as existing, and is refused when it is opened.
        if (path / relative).exists() or (path / relative).is_symlink():
            runs[relative] = read_run(path, relative)
    return SuiteResult(path, suite.name, suite.cells, runs)


def read_run(root: Path, inside: str = "") -> RunResult:
    """Return the run in the directory `root`, or `inside` it; missing parts are empty.

    A directory that holds nothing but attacks, as those on the record of another app, counts as a run that is done,
    and so does a study of pretraining.

    Raises `ValueError` for a damaged part, and for one that is a link or lies behind one.
    """
    path = root / inside
    if not path.is_dir():
        raise ValueError(f"{path}: no such directory")
    state = read_json(root, _name(inside, "run.json"), RunState)
    studied = not is_plain(root, _name(inside, "experiment.yaml")) and is_plain(root, _name(inside, STUDY_FILE))
    file = STUDY_FILE if studied else "experiment.yaml"
    written = _bytes(root, _name(inside, file), MAX_FILE)
    if studied:
        # A study that was made by an earlier version has no run.json.
        state = state or RunState(status="done")
    attacks = plain_folders(root, _name(inside, "attacks"), MAX_ATTACKS)
    if state is None and written is None:
        if not attacks:
            raise ValueError(
                f"{path}: neither a run (run.json, experiment.yaml) nor a study ({STUDY_FILE}) nor a suite "
                f"({SUITE_FILE}) nor attacks"
            )
        # The record of another app, which alone knows how its training went.
        state = RunState(status="done")
    state, written = state or RunState(), written or b""
    config = in_long_form(yaml_from(written, path / file), str(path / file))
    return RunResult(
        path=path,
        config=described_study(config) if studied else config,
        config_text=written.decode(),
        state=state,
        rounds=_rounds(root, _name(inside, "metrics.jsonl"), finished=state.status == "done"),
        attacks=tuple(read_attack(root, _name(inside, f"attacks/{name}")) for name in attacks),
    )


def read_attack(root: Path, inside: str = "") -> AttackFiles:
    """Return the attack in the directory `root`, or `inside` it, which is named after it; see `read_run`."""
    scores, member = read_scores(root, _name(inside, "scores.parquet"))
    return AttackFiles(
        name=str(printable((root / inside).name)),
        result=read_json(root, _name(inside, "attack.json"), AttackResult) or AttackResult(),
        scores=scores,
        member=member,
        gallery=read_gallery(root, _name(inside, "gallery.safetensors")),
        pairs=read_pairs(root, _name(inside, "reconstructions.safetensors")),
    )


def _name(inside: str, name: str) -> str:
    return f"{inside}/{name}" if inside else name


def _bytes(root: Path, name: str, limit: int) -> bytes | None:
    """Return the content of the plain file `root/name`, `None` when it is not there."""
    try:
        return read_plain(root, name, limit)
    except FileNotFoundError:
        return None


def _rounds(root: Path, name: str, finished: bool) -> tuple[Round, ...]:
    lines = (_bytes(root, name, MAX_METRICS_FILE) or b"").split(b"\n")
    # A stopped run may have written half of its last line; the lines before are valid.
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
                raise ValueError(f"line {number}: {first_complaint(error)}") from error
    return tuple(rounds)
