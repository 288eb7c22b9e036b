"""The report: one HTML file about a run or a suite, which needs no network and nothing beside it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from metaleak.attacks.evaluation.measures import tpr_at
from metaleak.attacks.evaluation.membership import FPR_LEVELS
from metaleak.deploy.report.examples import Pair, Tile, shown_pairs, tiles
from metaleak.deploy.report.figures import Colors, Curve, Drawn, FrontierPoint, frontier, log_roc, training_curve
from metaleak.deploy.report.page_template import page_template, script
from metaleak.deploy.report.rows import Row, comparison_rows, describe_run, rows_of
from metaleak.deploy.report.settings import Setting, ceilings, condition_of_epsilon, knows, settings
from metaleak.deploy.report.tables import LEVELS, bytes_text, epsilon_text
from metaleak.deploy.report.verdict import answer, verdict
from metaleak.deploy.report.wording import level_text, measure_text, needs_text, rate_text, unbroken
from metaleak.deploy.results.reading import AttackFiles, Results, RunResult, read
from metaleak.deploy.results.schema import Round
from metaleak.server.record.whole_file import write_whole

Progress = Callable[[int, int], None]
"""Called with (done, total) as runs are drawn."""


@dataclass(frozen=True, eq=False)
class RunPage:
    """What the report shows of one run; its attacks come with a label and the examples that they left."""

    anchor: str
    label: str
    run: RunResult
    facts: Sequence[tuple[str, str]]
    curves: Sequence[Drawn]
    attacks: Sequence[tuple[AttackFiles, str, Sequence[Tile], Sequence[Pair]]]


def write_report(path: Path, out: Path | None = None, progress: Progress | None = None) -> Path:
    """Write the report of the run or suite in directory `path` to `out` (`path/report.html`) and return where.

    `progress` is called after each run that is drawn. The same results give the same bytes. An existing report is
    replaced only once the new one is complete. Raises `ValueError` when `path` holds neither a run nor a suite, or
    holds a damaged part.
    """
    target = out or path / "report.html"
    page = render(read(path), progress)
    write_whole(target, page.encode())
    return target


def render(result: Results, progress: Progress | None = None) -> str:
    """Return the report as the text of an HTML page."""
    rows = comparison_rows(result)
    found = settings(rows_of(result))
    colors = {name: place for place, name in enumerate(dict.fromkeys(row.defense_name for row in rows))}
    suite = result.cells is not None
    runs = list(result.runs.values())
    # The same defense stands in several settings.
    titles = {id(row.run): setting.title for setting in found for line in setting.lines for row in line.rows}
    titles = titles if len(found) > 1 else {}
    pages = []
    for index, run in enumerate(runs):
        pages.append(_run_page(index, run, rows, colors, titles.get(id(run), "")))
        if progress:
            progress(index + 1, len(runs))
    code, code_hash = script("report.js")
    drawn = list(frontiers(found, colors))
    known = [line.privacy for setting in found for line in setting.lines if line.privacy]
    anchors = {id(page.run): page.anchor for page in pages}
    return page_template("report.html.j2").render(
        title=result.name,
        made=made(result),
        answer=[unbroken(sentence) for sentence in answer(found)],
        headline=drawn[:1],
        script=code,
        script_hash=code_hash,
        anchor=lambda row: anchors.get(id(row.run), ""),
        ceilings=ceilings(found),
        suite=suite,
        studied=any(row.is_study for row in rows),
        accuracy_name=rows[0].accuracy_name if rows else "accuracy",
        facts=[
            *(facts(runs[0].config) if not suite else _shared([row.config for row in rows if row.run])),
            *_asked(rows),
        ],
        runs=pages,
        rows=rows,
        varied=any(row.setting for row in rows),
        settings=found,
        knows=sorted(knows(rows).items()),
        conditions=condition_of_epsilon(rows),
        gaussian=any(one.gaussian_lower_bound is not None for one in known),
        attacked=any(one.accounted not in (None, one.accounted_run) for one in known),
        groups=[(attack, list(group)) for attack, group in groupby(rows, key=lambda row: row.attack)],
        verdict=verdict(rows),
        # A run may be complete without an attack; a suite's cell is not.
        failed=[
            row
            for row in rows
            if row.status not in ("done", "not applicable") and (suite or row.status != "not attacked")
        ],
        evaluated=[row for row in rows if row.headline],
        frontiers=drawn[1:],
        rocs=list(rocs(rows, colors)),
        levels=FPR_LEVELS,
        level_text=level_text,
        measure_text=measure_text,
        tpr_at=tpr_at,
        needs_text=needs_text,
        rate_text=rate_text,
        bytes_text=bytes_text,
        epsilon_text=epsilon_text,
        low_levels=LEVELS,
    )


def frontiers(found: Sequence[Setting], colors: Colors) -> Iterable[Drawn]:
    """Yield one panel per setting and headline: the strongest attack against accuracy, one point per line."""
    for setting in found:
        for measure in setting.measures:
            best = setting.frontier(measure)
            points = [
                FrontierPoint(
                    line.rows[0].defense_name,
                    line.defense,
                    line.rows[0].scale,
                    line.accuracy,
                    strongest.strength,
                    line in best,
                )
                for line in setting.lines
                if line.accuracy and (strongest := line.strongest(measure=measure))
            ]
            if points:
                yield frontier(setting.title, points, colors, setting.lines[0].rows[0].accuracy_name)


def rocs(rows: Sequence[Row], colors: Colors) -> Iterable[Drawn]:
    """Yield one panel per attack and setting: the ROC curves on logarithmic axes."""
    for (attack, setting), group in groupby(rows, key=lambda row: (row.attack, row.setting)):
        curves = []
        for row in group:
            files = row.attack_files
            if files and files.member.any() and not files.member.all():
                curves.append(Curve(row.strength, row.defense_name, files.scores, files.member))
        if curves:
            yield log_roc(_panel(attack, setting), curves, colors)


def training_curves(about: str, rounds: Sequence[Round], color: int = 0) -> list[Drawn]:
    """Return loss and adapted accuracy on held-out tasks over the rounds, as far as they were measured."""
    figures = []
    losses = [line for line in rounds if line.loss is not None]
    if losses:
        numbers, values = [line.round for line in losses], [line.loss for line in losses]
        figures.append(
            training_curve(about, "Loss, held-out tasks", "loss", numbers, np.array(values, float), None, color)
        )
    measured = [line for line in rounds if line.accuracy is not None]
    if measured:
        value = np.array([line.accuracy for line in measured], float)
        low = np.array([line.accuracy_low for line in measured], float)
        high = np.array([line.accuracy_high for line in measured], float)
        numbers = [line.round for line in measured]
        figures.append(
            training_curve(about, "Adapted accuracy, held-out tasks", "accuracy", numbers, value, (low, high), color)
        )
    return figures


def facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return an experiment's configuration as pairs of a top-level key and its value in words, without empty ones.

    Its attacks and targets are left out: what was planned is not what was run.
    """
    left_out = ("name", "attacks", "targets")
    said = ((str(key), _plain(value)) for key, value in config.items() if key not in left_out)
    return [(key, text) for key, text in said if text]


def made(result: Results) -> list[str]:
    """Return the results' date, the version of metaleak, and the command that makes them again."""
    states = [run.state for run in result.runs.values()]
    days = sorted({state.started[:10] for state in states if state.started})
    versions = sorted({state.versions["metaleak"] for state in states if "metaleak" in state.versions})
    suite = result.cells is not None
    said = [days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"] if days else []
    said += [f"metaleak {', '.join(versions)}"] if versions else []
    if suite:
        return [*said, "metaleak benchmark suite.yaml"]
    if any(row.is_study for row in rows_of(result)):
        return [*said, "metaleak pretraining study.yaml"]
    if any(run.config for run in result.runs.values()):
        return [*said, "metaleak simulate experiment.yaml"]
    return [*said, "metaleak attack record ATTACK --app app.yaml"]


def _asked(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return which attacks were made, on which sets, and on how many targets."""
    done = [row for row in rows if row.attack_result]
    attacks = dict.fromkeys(
        f"{row.attack} ({row.attack_result.asks})" if row.attack_result and row.attack_result.asks else row.attack
        for row in done
    )
    counts = dict.fromkeys(
        f"{row.evaluation.members} members + {row.evaluation.non_members} non-members"
        for row in done
        if row.evaluation
    )
    said = (("attacks made", ", ".join(attacks)), ("targets", "; ".join(counts)))
    return [(key, text) for key, text in said if text]


def _shared(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the facts in which all configurations agree."""
    described = [dict(facts(config)) for config in configs]
    keys = described[0] if described else {}
    return [(key, keys[key]) for key in keys if all(one.get(key) == keys[key] for one in described)]


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        parts = [f"{key} {_plain(inner)}" for key, inner in value.items() if key != "name" and inner is not None]
        name = str(value.get("name", ""))
        return f"{name} ({', '.join(parts)})" if name and parts else name or ", ".join(parts)
    if isinstance(value, list | tuple):
        return "; ".join(_plain(inner) for inner in value) or "none"
    if value is None:
        return ""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _run_page(index: int, run: RunResult, rows: Sequence[Row], colors: Colors, title: str) -> RunPage:
    own = [row for row in rows if row.run is run]
    if own:
        # Only what all of the run's attacks share describes the run.
        shared = tuple(part for part in own[0].differences if all(part in row.differences for row in own))
        label = replace(own[0], differences=shared).label
    else:
        label = describe_run(run)
    label = f"{title}: {label}" if title else label
    labels = {id(row.attack_files): row.label for row in own}
    return RunPage(
        anchor=f"run-{index}",
        label=label,
        run=run,
        facts=facts(run.config),
        curves=training_curves(label, run.rounds, colors[own[0].defense_name] if own else 0),
        attacks=[
            (
                attack,
                labels.get(id(attack), label),
                tiles(attack.gallery) if attack.gallery else [],
                shown_pairs(attack.pairs) if attack.pairs else [],
            )
            for attack in run.attacks
        ],
    )


def _panel(attack: str, setting: str) -> str:
    return f"{attack} attack, {setting}" if setting else f"{attack} attack"
