"""The command `metaleak pretraining`: progress while models are trained, a table when they are attacked."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from metaleak.attacks.work import Work
from metaleak.clients.randomness import derived_seed
from metaleak.deploy.pretraining.assessment import ask_victim, assess_study, attack_victim, planned
from metaleak.deploy.pretraining.examples import downstream_of
from metaleak.deploy.pretraining.over_http import HTTPQuery
from metaleak.deploy.pretraining.reading import read_study
from metaleak.deploy.pretraining.shadow_models import make_models, map_of_models
from metaleak.deploy.pretraining.study import Study
from metaleak.deploy.pretraining.study_state import noted
from metaleak.deploy.printable import printable
from metaleak.deploy.progress import Shown, shown_progress
from metaleak.deploy.results.arrays import write_columns
from metaleak.deploy.results.schema import AttackResult
from metaleak.deploy.simulate.run_directory import held
from metaleak.deploy.terminal import Grid, show


def study_command(
    file: Path, changes: tuple[str, ...], out: Path | None, victim: str | None, here: bool, as_json: bool
) -> None:
    """Train the models of the study in `file` that are missing in `out`, attack them, and print a table.

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
    """Train the models of `study` that are missing in the directory `path`, attack them, and return the results.

    Models are trained on Ray, or, with `here` and on a GPU, in this process. Every finished model is kept, so that
    after an interruption the same call continues. Returns the results by name.
    """
    path.mkdir(parents=True, exist_ok=True)
    folder = path / "models"
    with held(path, "this study"), shown_progress() as progress:
        seed = derived_seed(study.seed, "attack")
        bar = progress.add_task("models", total=None)
        with noted(study, path, folder), map_of_models(study, here) as mapped:
            make_models(study, folder, Work(seed, shown_speed(progress, bar), mapped))
        attacks = progress.add_task("attacks", total=None)
        advance = Work(seed, lambda done, total: progress.update(attacks, completed=done, total=total))
        return assess_study(study, folder, path, advance)


def attack_over_http(study: Study, path: Path, url: str) -> list[str]:
    """Ask the model behind `url` about the points, once for all attacks; return one line per result.

    `path/victim/<finetuning>-<attack>.parquet` has the place in the data set and the score of each point. It is not
    known which points are members. Attacks that need the pretrained model are left out.
    """
    attacks = {
        name: (finetuning, attack)
        for name, (finetuning, plugin) in planned(study).items()
        if not getattr(attack := plugin.built("pretraining_attacks"), "sees_pretrained", False)
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


def study_table(name: str, results: dict[str, AttackResult]) -> Grid:
    """Return one row per result: AUC and true-positive rates with their intervals."""
    rows = []
    for key, result in results.items():
        evaluation = result.evaluation
        if evaluation is None:
            continue
        rates = [evaluation.auc, *(evaluation.tpr.get(level) for level in ("0.01", "0.001"))]
        cells = ["–" if rate is None else f"{rate.value:.3f} {rate.low:.3f}–{rate.high:.3f}" for rate in rates]
        rows.append(
            [str(printable(key)), *cells, f"{result.released.accuracy.value:.1%}" if result.released else "–"]
        )
    columns = ["attack", "AUC", "TPR at 1% FPR", "TPR at 0.1% FPR", "downstream accuracy"]
    return Grid(str(printable(name)), columns, rows)


def shown_speed(progress: Shown, bar: Any) -> Callable[[int, int], None]:
    """Return a function that shows how many models are made, and how many per minute since it was called with 0."""
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal began
        if not done:
            began = time.monotonic()
        speed = f", {done / (time.monotonic() - began) * 60:.1f} a minute" if done else ""
        progress.update(bar, description=f"models{speed}", completed=done, total=total)

    return show
