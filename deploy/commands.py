"""The work of the commands: they show progress while they compute, and print tables when they are done."""

import json
import math
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import typer

from metaleak.attacks.evaluation.measures import AUC
from metaleak.deploy.assess.app_assessment import assess_app
from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.config.app import read_app
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.reading import attack_from, experiment_from, in_long_form, read_experiment, refuse_code
from metaleak.deploy.config.suite import Suite, read_suite_file
from metaleak.deploy.engines.ray_map import ray_map
from metaleak.deploy.pretraining.command import shown_speed
from metaleak.deploy.printable import printable
from metaleak.deploy.progress import Shown, shown_progress
from metaleak.deploy.report.leaderboard import write_leaderboard
from metaleak.deploy.report.page import write_report
from metaleak.deploy.report.rows import rows_of
from metaleak.deploy.report.settings import settings
from metaleak.deploy.report.tables import comparison_table, setting_tables
from metaleak.deploy.report.verdict import answer
from metaleak.deploy.results.reading import read, read_run, read_suite
from metaleak.deploy.results.schema import AttackResult, Cell
from metaleak.deploy.simulate.launch import resume, simulate
from metaleak.deploy.simulate.record_size import free_bytes, record_bytes, size_text
from metaleak.deploy.simulate.rounds import RoundDone
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.deploy.suites.benchmark import Standing, benchmark
from metaleak.deploy.suites.studies import benchmark_studies
from metaleak.deploy.terminal import say, show

_LARGE_RECORD = 100_000_000
"""A record of more bytes than this is announced before it is written."""


def write_template(file: Path) -> None:
    """Write the commented experiment file; raises `ValueError` when `file` exists."""
    if file.exists():
        raise ValueError(f"{file}: exists already; choose another name")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text((files("metaleak.deploy.config") / "templates" / "experiment.yaml").read_text())


def simulate_command(
    file: Path | None,
    changes: tuple[str, ...],
    out: Path | None,
    resumed: Path | None,
    as_json: bool,
    trust: bool = False,
) -> None:
    """Simulate the experiment in `file`, or resume the run `resumed`; show progress, print where the run is."""
    if resumed is not None:
        path, rounds = resumed, RunDirectory.open(resumed).experiment(trust=trust).server.rounds
    elif file is not None:
        experiment = read_experiment(file, changes)
        path, rounds = out or Path("runs") / _file_name(experiment.name), experiment.server.rounds
        RunDirectory.must_be_free(path)
        _tell_of_large_record(experiment, path)
    with shown_progress() as progress:
        bar = progress.add_task("loading, starting actors", total=rounds)

        def show(done: RoundDone) -> None:
            _show_round(progress, bar, done)

        run = resume(path, changes, show, trust) if resumed is not None else simulate(experiment, path, show)
    last = read_run(run.path)
    if as_json:
        final = last.rounds[-1].model_dump(mode="json") if last.rounds else {}
        typer.echo(json.dumps({"run": str(path), **last.state.model_dump(mode="json"), "final": final}))
        return
    shown = f", adapted accuracy {_percent(last.accuracy)}" if last.accuracy else ""
    counted = f"{rounds} {'round' if rounds == 1 else 'rounds'}"
    say(f"{path}: {counted} in {last.state.seconds or 0:.0f} s{shown}")


def attack_command(
    path: Path,
    name: str,
    changes: tuple[str, ...],
    data: tuple[str, ...],
    result: str | None,
    as_json: bool,
    trust: bool = False,
    wide: bool = False,
) -> None:
    """Attack, with a progress bar, and print the evaluation."""
    run = RunDirectory.open(path)
    experiment = _asking(run, name, changes, data, trust)
    plugin = experiment.attacks[0]
    with shown_progress() as progress, ray_map(experiment.engine, "the same command goes on from here") as spread:
        bar = progress.add_task(f"{name} attack", total=None)
        found = assess(
            run,
            experiment,
            plugin,
            result,
            lambda done, total: progress.update(bar, completed=done, total=total),
            spread,
        )
    if as_json:
        typer.echo(found.model_dump_json())
        return
    say(_sentence(name, found))
    alone = ", ".join(f"{key} {auc.value:.3f}" for key, auc in found.statistics.items())
    if alone:
        say(f"AUC of each statistic by itself, where small values count as members: {alone}")
    show(comparison_table(read(path), wide))


def app_attack_command(
    record: Path,
    name: str,
    changes: tuple[str, ...],
    app_file: Path,
    data_dir: Path | None,
    result: str | None,
    as_json: bool,
) -> None:
    """Attack the record of a Flower app that is not metaleak's own, and print the evaluation."""
    app = read_app(app_file, data_dir)
    plugin = attack_from(name, changes)
    with shown_progress() as progress:
        bar = progress.add_task(f"{name} attack", total=None)
        out, found = assess_app(
            record, app, plugin, result, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    if as_json:
        typer.echo(found.model_dump_json())
    elif found.evaluation is None:
        say(f"{name} attack: the candidates' file does not state who is a member, so the scores are not evaluated")
    else:
        say(_sentence(name, found))
    if not as_json:
        say(f"scores: {out / 'scores.parquet'}")


def benchmark_command(
    file: Path, changes: tuple[str, ...], out: Path | None, as_json: bool, wide: bool = False
) -> None:
    """Run the suite, print its tables, write leaderboard and report; exit 1 when a cell failed."""
    suite = read_suite_file(file)
    path = out or Path("runs") / _file_name(suite.name)
    cells = _studies(suite, path, changes) if suite.kind == "pretraining" else _experiments(suite, path, changes)
    result = read_suite(path)
    leaderboard = write_leaderboard(result)
    page = _report(path, None)
    counts = Counter(cell.status for cell in cells)
    if as_json:
        said = {"suite": str(path), "cells": len(cells), "done": counts["done"], "failed": counts["failed"]}
        typer.echo(json.dumps({**said, "leaderboard": str(leaderboard), "report": str(page)}))
    else:
        for sentence in answer(settings(rows_of(result))):
            say(sentence)
        say("")
        show(*setting_tables(result, wide))
        say(f"leaderboard: {leaderboard}\nreport: {page}")
    for cell in cells:
        if cell.status == "failed":
            say(printable(f"metaleak: failed: {cell.label}, {cell.attack}: {cell.error}"), error=True)
    if counts["failed"]:
        raise typer.Exit(1)


def _experiments(suite: Suite, path: Path, changes: tuple[str, ...]) -> list[Cell]:
    with shown_progress(timed=False) as progress:
        bar = progress.add_task("starting", total=None, left="")
        return benchmark(suite, path, lambda standing: _show_standing(progress, bar, standing), changes)


def _studies(suite: Suite, path: Path, changes: tuple[str, ...]) -> list[Cell]:
    with shown_progress() as progress:
        bar, models = (progress.add_task(what, total=None) for what in ("cells", "models"))
        return benchmark_studies(
            suite,
            path,
            lambda done, total: progress.update(bar, description="cells", completed=done, total=total),
            shown_speed(progress, models),
            changes,
        )


def report_command(path: Path, out: Path | None, as_json: bool = False) -> None:
    """Write the report, with a progress bar, and print where it is."""
    page = _report(path, out)
    if as_json:
        typer.echo(json.dumps({"report": str(page)}))
    else:
        say(f"wrote {page}")


def _report(path: Path, out: Path | None) -> Path:
    with shown_progress() as progress:
        bar = progress.add_task("report", total=None)
        return write_report(path, out, lambda done, total: progress.update(bar, completed=done, total=total))


def _asking(run: RunDirectory, name: str, changes: tuple[str, ...], data: tuple[str, ...], trust: bool) -> Experiment:
    """Return the run's experiment with one attack: the run's own of this name, or a default one, after `changes`.

    Code that the run names requires `trust`; code that the user names does not.
    """
    source = f"attack {name} on {run.path}"
    plain = in_long_form(run.stored(), source)
    if not trust:
        refuse_code(plain, source)
    listed = [one for one in plain.get("attacks", []) if isinstance(one, dict)]
    own = next((one for one in listed if one.get("name") == name), {"name": name})
    told = [change if change.startswith(("targets.", "engine.")) else f"attacks.0.{change}" for change in changes]
    return experiment_from({**plain, "attacks": [own]}, source, (*data, *told))


def _tell_of_large_record(experiment: Experiment, path: Path) -> None:
    """Print how much the simulation will write, if that is much, and how to write less."""
    size, free = record_bytes(experiment), free_bytes(path)
    if size >= _LARGE_RECORD or size > free:
        say(
            f"metaleak: the record will take about {size_text(size)} of the {size_text(free)} free at {path}; "
            "--set record.rounds=1 records only the first round",
            error=True,
        )


def _show_round(progress: Shown, bar: Any, done: RoundDone) -> None:
    missing = f", {done.missing} learners missing" if done.missing else ""
    if done.accuracy:
        progress.update(bar, description=f"accuracy {done.accuracy.value:.1%}{missing}")
    progress.update(bar, completed=done.round)


def _show_standing(progress: Shown, bar: Any, standing: Standing) -> None:
    left = "" if standing.seconds_left is None else f"about {math.ceil(standing.seconds_left / 60)} min left"
    now = ", ".join(f"{count} {what}" for what, count in Counter(standing.running).items())
    progress.update(bar, description=now or "done", completed=standing.done, total=standing.total, left=left)


def _sentence(name: str, found: AttackResult) -> str:
    if not found.headlines:
        return f"{name}: done"
    said = []
    for headline in found.headlines:
        number = f"{headline.value:.3f} (95 % interval {headline.low:.3f} to {headline.high:.3f})"
        asked = found.evaluation if headline.name == AUC else None
        about = f" on {asked.members} members and {asked.non_members} non-members" if asked else ""
        said.append(f"{headline.name} {number}{about}")
    return f"{name}: {'; '.join(said)}"


def _percent(estimate: Any) -> str:
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "experiment"
