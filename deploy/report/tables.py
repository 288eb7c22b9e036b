"""The tables for a terminal: what attacks learn, and for a suite what defenses cost."""

from collections.abc import Sequence
from dataclasses import replace

from rich.text import Text

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.measures import AUC, Measure, tpr_at
from metaleak.attacks.evaluation.membership import FPR_LEVELS
from metaleak.deploy.report.rows import Row, comparison_rows, rows_of
from metaleak.deploy.report.settings import Line, Setting, condition_of_epsilon, knows, settings
from metaleak.deploy.report.wording import level_text, needs_text, rate_text
from metaleak.deploy.results.reading import Results
from metaleak.deploy.simulate.record_size import size_text
from metaleak.deploy.terminal import Grid

LEVELS = ("0.001", "0.01")
"""The false-positive rates whose true-positive rates stand in the tables."""

_EPSILON = {
    "≥": "≥ is what the attacks prove at 95 % confidence",
    "Gaussian": "Gaussian ≥ is a sharper bound, for defenses that add Gaussian noise",
    "audit": "audit ≥ is what an audit with inputs of the adversary's choice proves",
    "≤": "≤ is what the defense promises for the whole run",
    "attacked": "attacked ≤ is what it promises for the rounds up to the last that was attacked",
}
"""What the parts of `epsilon_text` mean."""

_TPR = "TPR at {} FPR"
_MEASURED = ("set", "attack", "measure", "value", "95% interval")
_WORDS = frozenset(("set", "attack", "measure"))
_KEYS = frozenset(("set", "attack"))
_WIDE_ALONE = ("bytes a learner", "members + non-members", "intervals of TPR")
"""The columns that `--wide` adds."""


def setting_tables(result: Results, wide: bool = False) -> list[Grid]:
    """Return two tables per setting, what attacks learn and what defenses cost; with `wide` all their columns.

    The notes below the last table say what each attack's adversary knows, and what the parts of an epsilon mean.
    """
    rows = rows_of(result)
    found = settings(rows)
    tables = [table for setting in found for table in (_leaks(setting), _costs(setting))]
    if not tables:
        return []
    notes = [f"the adversary of {attack} knows {known}" for attack, known in sorted(knows(rows).items())]
    if any(setting.frontier() for setting in found):
        notes.append("* no other defense has both more accuracy and a weaker strongest attack")
    shown = [epsilon_text(line) for setting in found for line in setting.lines]
    meanings = [meaning for part, meaning in _EPSILON.items() if any(part in text for text in shown)]
    if meanings:
        notes.append(f"epsilon: {'; '.join(meanings)}")
    tables[-1] = replace(tables[-1], notes=[*tables[-1].notes, *notes, *condition_of_epsilon(rows)])
    return [table if wide else _narrower(table) for table in tables]


def comparison_table(result: Results, wide: bool = False) -> Grid:
    """Return a table with one row per attack and headline, of a run or a suite; `wide` adds the rates' intervals.

    True-positive rates are dashes where there are too few non-members.
    """
    rows = comparison_rows(result)
    columns = ["defense", *_MEASURED, *(_TPR.format(_tight(level_text(level))) for level in FPR_LEVELS)]
    columns += ["accuracy", "members + non-members", "intervals of TPR"]
    lines = [[row.label, *_measured(row, measure, FPR_LEVELS), _accuracy(row.accuracy), *_targets(row, measure)]
             for row in rows for measure in row.headlines or (None,)]  # fmt: skip
    notes = [f"{row.label}, {row.attack}: {row.status}{': ' + row.error if row.error else ''}"
             for row in rows if row.headline is None]  # fmt: skip
    notes += [
        f"{row.label}, {row.attack}: the statistic {row.revealing[0]} alone reaches AUC {row.revealing[1]:.3f}"
        for row in rows
        if row.revealing
    ]
    levels = [level for level in FPR_LEVELS if any(row.evaluation and level not in _resolved(row) for row in rows)]
    if levels:
        needed = "; ".join(f"at {_tight(level_text(level))} FPR {needs_text(level)}" for level in levels)
        notes.append(f"TPR, the members found while at most that share of non-members is accused, {needed}.")
    table = Grid("What the attacks learn", columns, lines, notes, _WORDS, _KEYS)
    alike = {name for place, name in enumerate(columns) if len({line[place] for line in lines}) == 1}
    table = _without_measure(table)
    return table if wide else _narrower(table).without_columns(alike & {"defense", "accuracy"})


def _leaks(setting: Setting) -> Grid:
    """Return the strongest attack for each defense and set, and for each headline that is not about membership."""
    lines: list[list[Text | str]] = []
    for line in setting.lines:
        found = [line.strongest(asked) for asked in setting.asked]
        found += [line.strongest(measure=name) for name in setting.other_measures]
        own = [
            [*_measured(one.row, one.strength, LEVELS, one.reversed), *_targets(one.row, one.strength)]
            for one in found
            if one is not None
        ]
        own = own or [["–"] * (len(_MEASURED) + len(LEVELS) + 2)]
        names = [_named(setting, line), *[Text()] * (len(own) - 1)]
        lines += [[name, *cells] for name, cells in zip(names, own, strict=True)]
    columns = ["defense", *_MEASURED, *(_TPR.format(_tight(level_text(level))) for level in LEVELS)]
    columns += ["members + non-members", "intervals of TPR"]
    title = f"What the strongest attacks learn: {setting.title}"
    return _without_measure(Grid(title, columns, lines, words=_WORDS, keys=_KEYS))


def _costs(setting: Setting) -> Grid:
    lines: list[list[Text | str]] = []
    for line in setting.lines:
        broken = line.privacy is not None and line.privacy.violated
        value, interval = rate_text(line.accuracy, percent=True) if line.accuracy else ("–", "–")
        epsilon = epsilon_text(line).replace("≥ ", "≥").replace("≤ ", "≤")
        cells = [_tight(value), interval, _tight(bytes_text(line).replace(" (", ", ").replace(")", ""))]
        lines.append([_named(setting, line), *cells, Text(epsilon, style="bold red" if broken else "")])
    columns = ["defense", "accuracy", "95% interval", "bytes a learner", "epsilon"]
    table = Grid(f"What defenses cost and promise: {setting.title}", columns, lines, words=frozenset(("epsilon",)))
    # A study has no learners that send anything.
    return table.without_columns(["bytes a learner"]) if setting.lines[0].rows[0].is_study else table


def _named(setting: Setting, line: Line) -> Text:
    name = Text(f"{line.defense} *" if line in setting.frontier() else line.defense)
    for trouble in line.troubles:
        name.append(f"\n{trouble}", style="bold red")
    return name


def _measured(row: Row, headline: Measure | None, levels: Sequence[str], reverse: bool = False) -> list[str]:
    """Return the cells of `_MEASURED` and of the true-positive rates at `levels`."""
    asks = row.attack_result.asks if row.attack_result else None
    value, interval = rate_text(headline) if headline else (row.status, "–")
    rates = [row.measure(tpr_at(level)) if headline and headline.name == AUC else None for level in levels]
    return [
        asks or "–",
        row.attack + (" reversed" if reverse else ""),
        headline.name if headline else "–",
        value,
        interval,
        *(_tight(rate_text(rate, percent=True)[0]) if rate else "–" for rate in rates),
    ]


def _targets(row: Row, headline: Measure | None) -> list[str]:
    """Return the number of targets with what the intervals resample, and the intervals of the rates."""
    if row.evaluation is None or headline is None or headline.name != AUC:
        return ["–", "–"]
    counts = f"{row.evaluation.members} + {row.evaluation.non_members}"
    rates = [rate_text(rate, percent=True)[1] for rate in row.evaluation.tpr.values() if rate]
    return [counts + (f", {row.resampled}" if row.resampled else ""), "; ".join(rates) or "–"]


def _accuracy(accuracy: Estimate | None) -> str:
    return "{} {}".format(*rate_text(accuracy, percent=True)).replace(" %", "%") if accuracy else "–"


def _resolved(row: Row) -> list[str]:
    return [level for level, rate in row.evaluation.tpr.items() if rate] if row.evaluation else []


def _without_measure(table: Grid) -> Grid:
    """Return the table with the measure's name as the heading of the values, if all rows have the same measure."""
    place = list(table.columns).index("measure")
    names = {str(row[place]) for row in table.rows} - {"–"}
    if len(names) != 1:
        return table
    columns = [names.copy().pop() if name == "value" else name for name in table.columns]
    return replace(table, columns=columns).without_columns(["measure"])


def _narrower(table: Grid) -> Grid:
    return table.without_columns(_WIDE_ALONE)


def _tight(text: str) -> str:
    """Return `text` without spaces between numbers and units, so that no line breaks there."""
    return text.replace(" %", "%").replace(" MB", "MB").replace(" KB", "KB").replace(" GB", "GB").replace(" B", "B")


def bytes_text(line: Line) -> str:
    """Return the size of one learner's message, and in per cent of the undefended message's."""
    if line.cost is None:
        return "–"
    part = line.cost.bytes_per_learner / max(1, line.cost.dense_bytes)
    return size_text(line.cost.bytes_per_learner) + (f" ({100 * part:.2g} %)" if part < 1 else "")


def epsilon_text(line: Line) -> str:
    """Return the lower bounds on epsilon and the promised one: "≥ 0.31, Gaussian ≥ 0.62, ≤ 8, attacked ≤ 2".

    The promise is for the whole run; "attacked" is that for the rounds up to the last one that was attacked, if these
    are fewer. A lower bound that could not be higher with so few learners or targets is marked.
    """
    if (privacy := line.privacy) is None:
        return "–"
    bound = f"≥ {privacy.lower_bound:.2f}" + (" (at most 0 with so few learners)" if privacy.ceiling == 0 else "")
    if privacy.at_ceiling and privacy.ceiling:
        bound += " (no attack on so few targets can prove more)"
    if privacy.gaussian_lower_bound is not None:
        bound += f", Gaussian ≥ {privacy.gaussian_lower_bound:.2f}"
    if privacy.audited is not None:
        bound += f", audit ≥ {privacy.audited:.2f}"
    whole = privacy.accounted if privacy.accounted_run is None else privacy.accounted_run
    if whole is None:
        return bound
    attacked = "" if privacy.accounted in (None, whole) else f", attacked ≤ {privacy.accounted:.3g}"
    return f"{bound}, ≤ {whole:.3g}{attacked}"
