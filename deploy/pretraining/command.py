"""What `metaleak pretraining` does: progress while models are trained, a table when they are attacked."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import ValidationError

from metaleak.attacks.work import Work, map_here
from metaleak.clients.device import torch_device
from metaleak.clients.randomness import derived_seed
from metaleak.deploy.config.nested import with_value
from metaleak.deploy.config.plain_yaml import parse_yaml
from metaleak.deploy.config.plugins import first_problem
from metaleak.deploy.config.reading import read_yaml
from metaleak.deploy.engines.ray_map import ray_map
from metaleak.deploy.errors import WrongUsage
from metaleak.deploy.pretraining.assessment import ask_victim, assess_study, attack_victim, planned
from metaleak.deploy.pretraining.examples import downstream_of
from metaleak.deploy.pretraining.over_http import HTTPQuery
from metaleak.deploy.pretraining.shadow_models import make_models
from metaleak.deploy.pretraining.study import Study
from metaleak.deploy.printable import printable
from metaleak.deploy.progress import Shown, shown_progress
from metaleak.deploy.results.arrays import write_columns
from metaleak.deploy.results.schema import AttackResult
from metaleak.deploy.simulate.run_directory import held, write_text
from metaleak.deploy.terminal import Grid, show

_GO_ON = "the same command goes on from here"


def study_command(
    file: Path, changes: tuple[str, ...], out: Path | None, victim: str | None, here: bool, as_json: bool
) -> None:
    """Make the models of the study in `file` that are missing in `out`, attack them, and print a table.

    With the URL of a `victim` that model is attacked, too; see `attack_over_http`.
    """
    study = read_study(file, changes)
    path = out or Path("runs") / file.stem
    results = run_study(study, path, here)
    if victim is not None:
        for line in attack_over_http(study, path, victim):
            typer.echo(line, err=True)
    if as_json:
        typer.echo(json.dumps({name: result.model_dump(mode="json") for name, result in results.items()}))
        return
    show(study_table(study.name, results))


def run_study(study: Study, path: Path, here: bool = False) -> dict[str, AttackResult]:
    """Make the models of `study` that are missing in the directory `path`, attack them, and return the results.

    Models are made on Ray, or with `here` and on a GPU in this process. Every model is kept once it is made: after an
    interruption the same call goes on.
    """
    path.mkdir(parents=True, exist_ok=True)
    folder = path / "models"
    with held(path, "this study"), shown_progress() as progress:
        write_text(path / "study.yaml", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
        seed = derived_seed(study.seed, "attack")
        bar = progress.add_task("models", total=None)
        with ExitStack() as up:
            alone = here or torch_device(study.engine.device).type == "cuda"
            mapped = map_here if alone else up.enter_context(ray_map(study.engine, _GO_ON))
            make_models(study, folder, Work(seed, _with_speed(progress, bar), mapped))
        attacks = progress.add_task("attacks", total=None)
        advance = Work(seed, lambda done, total: progress.update(attacks, completed=done, total=total))
        return assess_study(study, folder, path, advance)


def attack_over_http(study: Study, path: Path, url: str) -> list[str]:
    """Ask the model behind `url` about the points, once for all attacks; return a line a result.

    `path/victim/<finetuning>-<attack>.parquet` has the place in the data set and the score of each point. Which
    points are members is not known here. Attacks that see the start are left out.
    """
    attacks = {
        name: (finetuning, attack)
        for name, (finetuning, plugin) in planned(study).items()
        if not getattr(attack := plugin.built("pretraining_attacks"), "sees_start", False)
    }
    if not attacks:
        return []
    victim = ask_victim(study, HTTPQuery(url, downstream_of(study).ways))
    why = f"; {victim.complaint}" if victim.complaint else ""
    (path / "victim").mkdir(exist_ok=True)
    lines = []
    for name, (finetuning, attack) in attacks.items():
        work = Work(derived_seed(study.seed, "attack"))
        scores = attack_victim(study, path / "models", finetuning, attack, victim, work)
        write_columns(path / "victim" / f"{name}.parquet", {"example": victim.examples, "score": scores})
        lines.append(f"{path / 'victim' / name}.parquet: {len(scores)} points{why}")
    return [str(printable(line)) for line in lines]


def read_study(file: Path, changes: tuple[str, ...] = ()) -> Study:
    """Return the study in the YAML `file` after `changes` like `models=65`; raises `WrongUsage` in one line."""
    plain: Any = read_yaml(file)
    if not isinstance(plain, dict):
        raise WrongUsage(f"{file}: must be a mapping of keys to values")
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path:
            raise WrongUsage(f"--set {change!r}: must be key=value, for example models=65")
        try:
            plain = with_value(plain, path, parse_yaml(text), f"--set {change!r}")
        except yaml.YAMLError as error:
            raise WrongUsage(f"--set {change!r}: the value is not YAML: {error}") from None
    return study_from(plain, str(file))


def study_from(plain: dict[str, Any], source: str) -> Study:
    """Return the study that `plain` (parsed YAML) describes; a name is short for `{name: ...}`."""
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
    try:
        return Study.model_validate(plain)
    except ValidationError as error:
        raise WrongUsage(f"{source}: {first_problem(error, Study)}") from None


def study_table(name: str, results: dict[str, AttackResult]) -> Grid:
    """Return a row a result: AUC and true-positive rates with their intervals."""
    rows = []
    for key, result in results.items():
        evaluation = result.evaluation
        if evaluation is None:
            continue
        rates = [evaluation.auc, *(evaluation.tpr.get(level) for level in ("0.01", "0.001"))]
        cells = ["–" if rate is None else f"{rate.value:.3f} {rate.low:.3f}–{rate.high:.3f}" for rate in rates]
        rows.append([str(printable(key)), *cells, f"{result.attack['downstream_accuracy']:.1%}"])
    columns = ["attack", "AUC", "TPR at 1% FPR", "TPR at 0.1% FPR", "downstream accuracy"]
    return Grid(str(printable(name)), columns, rows)


def _with_speed(progress: Shown, bar: Any) -> Callable[[int, int], None]:
    """Return what shows how many models are made, and how many a minute."""
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        speed = f", {done / (time.monotonic() - began) * 60:.1f} a minute" if done else ""
        progress.update(bar, description=f"models{speed}", completed=done, total=total)

    return show
