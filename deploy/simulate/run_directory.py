"""The directory that one simulation writes, and what lies in it.

RUN/
    experiment.yaml         the experiment, every default written out
    run.json                status, times, seed, versions
    metrics.jsonl           one line per round
    checkpoint.safetensors  all that is needed to resume the run, written after every round
    parameters.safetensors  the trained initialization
    record/                 what the server saw (see metaleak.server.record.reader)
    arriving/               replies that are about to be recorded, while the simulation runs
    attacks/<name>/         attack.json, scores.parquet, gallery.safetensors
"""

import fcntl
import glob
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
import yaml
from safetensors.torch import save

from metaleak.clients.episode import Parameters
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.reading import MAX_FILE, experiment_from, yaml_from
from metaleak.deploy.results.json_file import read_json, write_json
from metaleak.deploy.results.schema import Round, RunState
from metaleak.server.record.plain_file import is_plain, read_plain, through_no_link
from metaleak.server.record.tensor_file import read_tensors
from metaleak.server.record.whole_file import remove_parts, write_whole

Status = Literal["done", "failed", "interrupted"]
"""How a run ends."""

_WRITTEN = ("run.json", "metrics.jsonl", "checkpoint.safetensors", "parameters.safetensors")
_EXPERIMENT = "experiment.yaml"
_STATE = "run.json"
_LARGEST_METRICS = 1 << 28  # bytes, for the most rounds that a run may have

_REPORTED = ("metaleak", "torch", "flwr", "ray", "numpy", "safetensors", "pyarrow")


class RunDirectory:
    """A run at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def is_free(path: Path) -> bool:
        """Return whether a run can be made at `path`: nothing is there, or an empty directory."""
        return not path.exists() or (path.is_dir() and not any(path.iterdir()))

    @classmethod
    def must_be_free(cls, path: Path) -> None:
        """Raise `ValueError` when there is something at `path`."""
        if not cls.is_free(path):
            raise ValueError(f"{path}: exists already; a run is never overwritten, choose another --out")

    @classmethod
    def create(cls, path: Path, experiment: Experiment) -> "RunDirectory":
        """Make the directory and write the experiment; raises `ValueError` when there is something already."""
        cls.must_be_free(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made beside its place and then moved there, so that an incomplete run never exists.
        _remove_unfinished(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        beside.mkdir()
        try:
            with held(beside, "this run"):
                run = cls(beside)
                write_text(beside / _EXPERIMENT, yaml.safe_dump(experiment.resolved(), sort_keys=False))
                run._write_state(**_first_state(experiment.seed))
                beside.rename(path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Return the run at `path`; raises `ValueError` when there is none."""
        if not is_plain(path, _EXPERIMENT):
            raise ValueError(f"{path}: is not a run (experiment.yaml is missing)")
        return cls(path)

    def experiment(self, changes: tuple[str, ...] = (), trust: bool = False) -> Experiment:
        """Return the run's experiment, after `changes` such as `targets.round=last`.

        A run may come from a stranger: unless you `trust` it, an experiment that names code (`module:Name`) is
        refused before any of it is imported. Raises `ValueError` in one line.
        """
        return experiment_from(self.stored(), str(self.path / _EXPERIMENT), changes, code=trust)

    def stored(self) -> object:
        """Return the run's experiment as plain data, as it was stored; nothing is built."""
        return yaml_from(read_plain(self.path, _EXPERIMENT, MAX_FILE), self.path / _EXPERIMENT)

    @property
    def record(self) -> Path:
        """The path of the record, which may not exist yet; raises `ValueError` if it is a link."""
        path = self.path / "record"
        if path.is_symlink():
            raise ValueError(f"{path}: a link, which is not followed: a run's record lies in the run")
        return path

    @property
    def arriving(self) -> Path:
        """Where replies arrive while the simulation runs, on the disk of the record."""
        return self.path / "arriving"

    def state(self) -> RunState:
        """Return what `run.json` holds, the defaults when it is missing; raises `ValueError` for a damaged one."""
        return read_json(self.path, _STATE, RunState) or RunState()

    def _write_state(self, **changes: object) -> None:
        write_json(self.path / _STATE, RunState(**{**self.state().model_dump(), **changes}))

    @property
    def done(self) -> bool:
        """Whether the simulation is finished."""
        return self.state().status == "done"

    def begin(self) -> None:
        """Note that the run is computed from now on; it started when it was first computed."""
        self._write_state(status="running", error=None, started=self.state().started or now())

    def begin_study(self, seed: int) -> None:
        """Note that the models of a study of pretraining are made from now on, with this seed and these versions."""
        self._write_state(**_first_state(seed), status="running", error=None, finished=None, seconds=None)

    def keep_chunk(self, chunk: int) -> None:
        """Note how many learners are computed at once; the run keeps this number."""
        self._write_state(chunk=chunk)

    def end(self, status: Status, error: str | None = None) -> None:
        """Note how the run ended, and how long it took since `begin`."""
        started = datetime.fromisoformat(self.state().started or now())
        seconds = (datetime.now(UTC) - started).total_seconds()
        self._write_state(status=status, finished=now(), seconds=round(seconds, 3), error=error)

    def add_metrics(self, line: Round) -> None:
        """Append one round's line to `metrics.jsonl`."""
        with open(self.path / "metrics.jsonl", "a", opener=through_no_link) as lines:
            lines.write(json.dumps(line.model_dump(mode="json")) + "\n")

    def forget_metrics(self, last_round: int) -> None:
        """Keep only the complete lines of the rounds up to `last_round`."""
        path = self.path / "metrics.jsonl"
        try:
            lines = read_plain(self.path, path.name, _LARGEST_METRICS).splitlines(keepends=True)[:last_round]
        except FileNotFoundError:
            lines = []
        write_whole(path, b"".join(lines))

    @property
    def checkpoint(self) -> Path:
        """Where the state after the last round lies."""
        return self.path / "checkpoint.safetensors"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run, so that no second process writes into it; raises `ValueError` if one does already."""
        with held(self.path, "this run"):
            remove_parts(self.path, _WRITTEN)
            yield

    def save_parameters(self, parameters: Parameters) -> None:
        """Write the initialization as it is now."""
        write_whole(self.path / "parameters.safetensors", save(parameters))


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Lock the directory `path`; raises `ValueError`, which says `what` it is, if another process has locked it."""
    with open(path / ".held", "w", opener=through_no_link) as lock:
        try:
            # The system releases the lock when this process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path}: another process is working on {what}") from None
        yield


def _remove_unfinished(path: Path) -> None:
    """Remove the unfinished directory of a process that died while it made `path`."""
    for beside in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        process = beside.name.removeprefix(f".{path.name}.").removesuffix(".part")
        if not process.isdecimal() or not beside.is_dir() or beside.is_symlink() or _alive(int(process)):
            continue
        # It may live on another machine that has the same disk.
        with suppress(ValueError, OSError), held(beside, "this run"):
            shutil.rmtree(beside)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def read_parameters(path: Path, like: Parameters) -> Parameters:
    """Return the parameters in a safetensors file.

    Raises `ValueError` in one line when it cannot be read, or differs from `like` in names or shapes.
    """
    try:
        # The path is the user's and may be a link; the file that it leads to must be a plain one.
        _, found = read_tensors(path.resolve())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    shapes = {name: value.shape for name, value in found.items()}
    expected = {name: tuple(value.shape) for name, value in like.items()}
    if shapes != expected:
        raise ValueError(f"{path}: holds {shapes}, the model has {expected}")
    return {name: torch.from_numpy(found[name]).to(like[name].dtype) for name in like}


def _first_state(seed: int) -> dict[str, object]:
    """Return what `run.json` holds when a run begins: its time, its seed, and the versions that compute it."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in _REPORTED}
    return {"started": now(), "seed": seed, "versions": versions}


def now() -> str:
    """Return the time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is complete or as it was before."""
    write_whole(path, text.encode())
