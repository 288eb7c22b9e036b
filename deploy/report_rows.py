"""The comparison: one row a defence, scale and attack, from a run or a suite; its table for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table
from rich.text import Text

from metaleak.attacks.evaluation import FPR_LEVELS, Estimate, Evaluation
from metaleak.attacks.roc import non_members_needed
from metaleak.deploy.results import AttackResult, Cell, RunResult, SuiteResult

_CLEARLY = 0.05
"""A statistic's AUC must beat the score's by this much to be worth a word beside it."""

UNDEFENDED = "undefended"

_KNOWN = {
    "gaussian": ("", "Gaussian mechanism"),
    "pruning": ("keep", "pruning (part kept)"),
    "quantisation": ("bits", "quantisation (bits)"),
    "sign": ("", "sign and mean magnitude alone"),
    "selection": ("", "selected layers alone"),
    "secure-aggregation": ("", "secure aggregation (ideal functionality)"),
}
"""The setting that stands for a defence's scale, if any, and what to call it."""

_OUTSIDE = frozenset({"name", "defences", "attacks", "engine", "record"})
"""Keys of an experiment that set no row apart: they stand in columns of their own, or change no number."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    `defence` and `scale` are for display, `UNDEFENDED` and "" without any; `setting` names whatever else
    differs between the rows of one attack, such as "ways 5". `status` is "done" or what went wrong, then
    `error` says why. `run` and `attack_result` are the results behind the row, where there are any.
    """

    defence: str
    scale: str
    setting: str
    attack: str
    status: str
    error: str | None
    run: RunResult | None
    attack_result: AttackResult | None

    @property
    def evaluation(self) -> Evaluation | None:
        """What the attack achieved, if it was evaluated."""
        return self.attack_result.evaluation if self.attack_result else None

    @property
    def accuracy(self) -> Estimate | None:
        """The run's last adapted accuracy, if it was measured."""
        return self.run.accuracy if self.run else None

    @property
    def defence_name(self) -> str:
        """The defence as words of a sentence."""
        return "no defence" if self.defence == UNDEFENDED else self.defence

    @property
    def strength(self) -> str:
        """Defence and scale in one phrase."""
        return f"{self.defence_name}, scale {self.scale}" if self.scale else self.defence_name

    @property
    def betrayed(self) -> tuple[str, float] | None:
        """The attack's statistic that leaks clearly more than its score, with its AUC; `None` when none does."""
        if self.evaluation is None or self.attack_result is None or not self.attack_result.statistics:
            return None
        by_leak = {name: leak(auc.value) for name, auc in self.attack_result.statistics.items()}
        name = max(by_leak, key=by_leak.__getitem__)
        return (name, by_leak[name]) if by_leak[name] > leak(self.evaluation.auc.value) + _CLEARLY else None

    @property
    def leak(self) -> float:
        """How far from guessing the attack's score, or its best statistic, is: an AUC in [0.5, 1]."""
        own = leak(self.evaluation.auc.value) if self.evaluation else 0.5
        return max(own, self.betrayed[1]) if self.betrayed else own

    @property
    def label(self) -> str:
        """Defence, scale and setting in one phrase."""
        return f"{self.strength} ({self.setting})" if self.setting else self.strength


def leak(auc: float) -> float:
    """Return how far an AUC is from guessing, in [0.5, 1]: a reversed order leaks as much."""
    return max(auc, 1 - auc)


def comparison_rows(result: RunResult | SuiteResult) -> list[Row]:
    """Return the rows of a run (one an attack) or a suite (one a cell, failed ones too), in a stable order.

    Rows of one setting and attack stand together, the undefended first, then by defence and rising scale.
    """
    if isinstance(result, SuiteResult):
        rows = [_cell_row(cell, result) for cell in result.cells]
    else:
        attacks: Sequence[AttackResult | None] = result.attacks or (None,)
        rows = [_run_row(result, attack) for attack in attacks]
    return sorted(_with_settings(rows), key=_order)


def describe_defences(defences: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return a name and a scale for the defences of an experiment, ("undefended", "") without any.

    The scale is the number that a grid would vary: noise's `scale`; where it is another setting, the name says which.
    """
    if not defences:
        return UNDEFENDED, ""
    names, scales = [], []
    for defence in defences:
        others = {key: value for key, value in defence.items() if value is not None}
        place, name, law = (str(others.pop(key, "")) for key in ("place", "name", "law"))
        scale_key, title = _KNOWN.get(name, ("scale", f"{place} {name or 'defence'}".strip()))
        if name == "gaussian":
            scale_key = "epsilon" if "epsilon" in others else "noise_multiplier"
            title += f" ({scale_key.replace('_', ' ')})"
        if scale_key in others:
            scales.append(_plain(others.pop(scale_key)))
        details = [law, *(f"{key} {_plain(value)}" for key, value in others.items())]
        names.append(", ".join([title, *(detail for detail in details if detail)]))
    return " + ".join(names), " + ".join(scales)


def _plain(value: object) -> str:
    """Return a setting as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}"
    return " ".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)


def describe_run(run: RunResult) -> str:
    """Return the defences of a run in one phrase."""
    return _run_row(run, None).label


def rate_text(estimate: Estimate, percent: bool = False) -> tuple[str, str]:
    """Return a rate and its interval: ("0.993", "0.988–0.997"), or in per cent ("99.3 %", "98.8–99.7")."""
    factor, digits, unit = (100, 1, " %") if percent else (1, 3, "")
    low, high = (f"{bound * factor:.{digits}f}" for bound in (estimate.low, estimate.high))
    return f"{estimate.value * factor:.{digits}f}{unit}", f"{low}–{high}"


def needs_text(level: str) -> str:
    """Return what to print where there are too few non-members for the false-positive rate `level`."""
    return f"needs ≥ {non_members_needed(float(level)):,} non-members".replace(",", " ")


def level_text(level: str) -> str:
    """Return a false-positive rate in per cent: "0.001" is "0.1 %"."""
    return f"{float(level) * 100:g} %"


def comparison_table(result: RunResult | SuiteResult) -> Table:
    """Return the comparison as a table for a terminal of 80 columns or more, each rate with its 95 % interval.

    The TPRs stand in the order of `FPR_LEVELS`, a dash where there are too few non-members; the report has more.
    """
    rows = comparison_rows(result)
    needed = "; ".join(f"{level_text(level)} {needs_text(level)}" for level in FPR_LEVELS)
    table = Table(
        title="What each defence leaves to the attacker, and what it costs", caption=f"TPR at a FPR of {needed}."
    )
    levels = " / ".join(level_text(level).removesuffix(" %") for level in FPR_LEVELS)
    for column in ("defence", "attack", "AUC", f"TPR % at {levels} % FPR", "adapted accuracy", "n"):
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
        else:
            tpr = counts = "–"
            auc = Text(f"{row.status}: {row.error}" if row.error else row.status, style="bold red")
        shown = [Text(row.label), Text(row.attack), auc, Text(tpr), Text(accuracy), Text(counts)]
        table.add_row(*shown, end_section=True)
    return table


def _run_row(run: RunResult, attack: AttackResult | None) -> Row:
    defence, scale = describe_defences(_defences(run.config))
    status, error = run.status, run.error
    if status == "done" and (attack is None or attack.evaluation is None):
        status = "not attacked" if attack is None else "not evaluated"
    return Row(defence, scale, "", attack.name if attack else "–", status, error, run, attack)


def _cell_row(cell: Cell, suite: SuiteResult) -> Row:
    run = suite.runs.get(cell.run)
    attack = next((one for one in run.attacks if one.name == cell.attack), None) if run else None
    defence, scale = describe_defences(cell.defences or (_defences(run.config) if run else ()))
    # Without a run there is no configuration to compare: the cell's own words say which one is lost.
    about = [("model", [one.model for one in suite.cells], cell.model)]
    about += [("learners", [str(one.learners) for one in suite.cells], str(cell.learners))]
    setting = "" if run else ", ".join(f"{key} {own}" for key, found, own in about if len(set(found)) > 1)
    error: str | None
    if cell.status == "failed":
        status, error = "failed", cell.error or "no reason was recorded"
    elif run is None:
        status, error = "missing", f"{cell.run} is not there"
    else:
        whole = _run_row(run, attack)
        status, error = whole.status, whole.error
    # A suite names its results by attack and hash: what differs between the hashes stands in the setting.
    name = attack.kind if attack else cell.attack
    return Row(defence, scale, setting, name, status, error, run, attack)


def _defences(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = config.get("defences")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _with_settings(rows: list[Row]) -> list[Row]:
    """Name, for each row, the values in which its run or attack differs from others of the same attack."""
    named = list(rows)
    for attack in {row.attack for row in rows}:
        members = [index for index, row in enumerate(rows) if row.attack == attack and row.run]
        flat = {index: dict(_knobs(rows[index])) for index in members}
        keys = dict.fromkeys(key for knobs in flat.values() for key in knobs)
        varying = [key for key in keys if len({knobs.get(key) for knobs in flat.values()}) > 1]
        for index in members:
            parts = [f"{_short(key)} {flat[index][key]}" for key in varying if key in flat[index]]
            named[index] = replace(rows[index], setting=", ".join(parts))
    return named


def _knobs(row: Row) -> Iterator[tuple[str, str]]:
    """Yield what was set for a row, as dotted keys and text."""
    if row.run:
        for key, value in row.run.config.items():
            if key not in _OUTSIDE:
                yield from _flatten(str(key), value)
    if row.attack_result:
        yield from _flatten("attack", row.attack_result.config)


def _flatten(key: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for inner, nested in value.items():
            yield from _flatten(f"{key}.{inner}", nested)
    else:
        yield key, str(value)


def _short(key: str) -> str:
    *parents, last = key.split(".")
    return parents[-1] if parents and last == "name" else last.replace("_", " ")


def _order(row: Row) -> tuple[str, str, bool, str, float, str]:
    try:
        scale = float(row.scale or 0)
    except ValueError:
        scale = 0.0
    return row.attack, row.setting, row.defence != UNDEFENDED, row.defence, scale, row.scale
