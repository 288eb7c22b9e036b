"""The tables for a terminal: one of all attacks, and of a suite one a setting with a line a defense."""

from rich.table import Table
from rich.text import Text

from metaleak.attacks.evaluation.measures import tpr_at
from metaleak.attacks.evaluation.membership import FPR_LEVELS
from metaleak.deploy.report.rows import comparison_rows, level_text, measure_text, needs_text, rate_text, rows_of
from metaleak.deploy.report.settings import Asked, Found, Line, Setting, condition_of_epsilon, knows, settings
from metaleak.deploy.results.reading import Results
from metaleak.deploy.simulate.record_size import size_text

LEVELS = ("0.001", "0.01")
"""The false-positive rates whose true-positive rates stand in the tables."""


def setting_tables(result: Results) -> list[Table]:
    """Return one table a setting, for a terminal of 100 columns or more; below the last, what each attack knows
    and, where an epsilon is promised, what the promise rests on."""
    rows = rows_of(result)
    tables = [_table(setting) for setting in settings(rows)]
    if tables:
        notes = [f"{attack} knows {known}" for attack, known in sorted(knows(rows).items())]
        tables[-1].caption = "\n".join([*notes, *condition_of_epsilon(rows)])
        tables[-1].caption_justify = "left"
    return tables


def comparison_table(result: Results) -> Table:
    """Return the comparison as a table for a terminal of 80 columns or more, each rate with its 95 % interval.

    The TPRs stand in the order of `FPR_LEVELS`, a dash where there are too few non-members; the report has more.
    """
    rows = comparison_rows(result)
    needed = "; ".join(f"{level_text(level)} {needs_text(level)}" for level in FPR_LEVELS)
    table = Table(
        title="What each defense leaves to the attacker, and what it costs", caption=f"TPR at a FPR of {needed}."
    )
    levels = " / ".join(level_text(level).removesuffix(" %") for level in FPR_LEVELS)
    for column in ("defense", "attack", "AUC", f"TPR % at {levels} % FPR", "adapted accuracy", "n"):
        table.add_column(column)
    for row in rows:
        accuracy = "\n".join(rate_text(row.accuracy, percent=True)) if row.accuracy else "–"
        if evaluation := row.evaluation:
            rates = [evaluation.tpr.get(level) for level in FPR_LEVELS]
            tpr = " / ".join(f"{100 * rate.value:.0f}" if rate else "–" for rate in rates)
            auc = Text("\n".join(rate_text(evaluation.auc)))
            if row.betrayed:
                auc.append(f"\nbut {row.betrayed[0]} {row.betrayed[1]:.3f}", style="bold red")
            counts = f"{evaluation.members} + {evaluation.non_members}"
            if evaluation.clusters == 1:
                counts += f"\n{row.resampled}"
        elif row.headline:
            tpr = counts = "–"
            auc = Text(measure_text(row.headline).replace(", ", "\n"))
        else:
            tpr = counts = "–"
            auc = Text(f"{row.status}: {row.error}" if row.error else row.status, style="bold red")
        shown = [Text(row.label), Text(row.attack), auc, Text(tpr), Text(accuracy), Text(counts)]
        table.add_row(*shown, end_section=True)
    return table


def bytes_text(line: Line) -> str:
    """Return what one learner's message takes, with its part of the undefended one's."""
    if line.cost is None:
        return "–"
    part = line.cost.bytes_per_learner / max(1, line.cost.dense_bytes)
    return size_text(line.cost.bytes_per_learner) + (f" ({100 * part:.2g} %)" if part < 1 else "")


def epsilon_text(line: Line) -> str:
    """Return the lower bounds on epsilon and what is accounted for, "≥ 0.31, Gaussian ≥ 0.62, ≤ 8, attacked ≤ 2".

    That is for the whole run, and beside it for the rounds up to the last that was attacked, where these are fewer.
    A lower bound that can be no more than 0 with so few learners says so.
    """
    if (privacy := line.privacy) is None:
        return "–"
    bound = f"≥ {privacy.lower_bound:.2f}" + (" (at most 0 with so few learners)" if privacy.ceiling == 0 else "")
    if privacy.gaussian_lower_bound is not None:
        bound += f", Gaussian ≥ {privacy.gaussian_lower_bound:.2f}"
    if privacy.audited is not None:
        bound += f", audit ≥ {privacy.audited:.2f}"
    whole = privacy.accounted if privacy.accounted_run is None else privacy.accounted_run
    if whole is None:
        return bound
    attacked = "" if privacy.accounted in (None, whole) else f", attacked ≤ {privacy.accounted:.3g}"
    return f"{bound}, ≤ {whole:.3g}{attacked}"


def tpr_text(line: Line, asked: Asked) -> str:
    """Return the strongest attack's true-positive rates at `LEVELS` in per cent, a dash where unresolved."""
    found = line.strongest(asked)
    if found is None:
        return "–"
    rates = [found.row.measure(tpr_at(level)) for level in LEVELS]
    return " / ".join(f"{100 * rate.value:.1f}" if rate else "–" for rate in rates)


def _table(setting: Setting) -> Table:
    table = Table(title=setting.title)
    levels = " / ".join(level_text(level).removesuffix(" %") for level in LEVELS)
    columns = ["defense", "bytes", "accuracy"]
    for asked in setting.asked:
        columns += [f"{asked}: AUC", f"TPR % at {levels} % FPR"]
    columns += setting.other_measures
    for column in (*columns, "epsilon"):
        # Folded in a narrow terminal: half an interval would mislead.
        table.add_column(column, overflow="fold")
    best = setting.frontier()
    for line in setting.lines:
        # On the frontier: no other has both more accuracy and a weaker strongest attack.
        name = Text(f"{line.defense} *" if line in best else line.defense)
        for trouble in line.troubles:
            name.append(f"\n{trouble}", style="bold red")
        broken = line.privacy is not None and line.privacy.violated
        cells: list[Text | str] = [
            name,
            bytes_text(line),
            "\n".join(rate_text(line.accuracy, percent=True)) if line.accuracy else "–",
        ]
        for asked in setting.asked:
            cells += [_strongest(line.strongest(asked)), tpr_text(line, asked)]
        cells += [_strongest(line.strongest(measure=name)) for name in setting.other_measures]
        table.add_row(*cells, Text(epsilon_text(line), style="bold red" if broken else ""), end_section=True)
    return table


def _strongest(found: Found | None) -> Text:
    if found is None:
        return Text("–")
    lines = [*rate_text(found.strength), found.row.attack + (" reversed" if found.reversed else "")]
    if found.row.evaluation and found.row.evaluation.clusters == 1:
        lines.append(str(found.row.resampled))
    return Text("\n".join(lines))
