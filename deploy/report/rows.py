"""The comparison: one row per defense, scale and attack, from a run or a suite."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.measures import Measure
from metaleak.attacks.evaluation.membership import Evaluation
from metaleak.deploy.config.defense_words import (
    RULE_STRUCTURE,
    UNDEFENDED,
    describe_defenses,
    describe_strength,
    describe_structure,
)
from metaleak.deploy.results.reading import AttackFiles, Results, RunResult
from metaleak.deploy.results.schema import AttackResult, Cell

_CLEARLY_MORE = 0.05
"""A statistic is shown beside the score when its AUC is larger by this much."""

_OUTSIDE = frozenset({"name", "defenses", "attacks", "engine", "record", *(f"rule.{key}" for key in RULE_STRUCTURE)})
"""Keys that are not listed as differences between rows: they have columns of their own, or change no number."""

_TARGET_WORDS = {
    "targets.round": "round attacked",
    "targets.rounds": "rounds attacked",
    "targets.members": "members asked",
    "targets.non_members": "non-members asked",
}
"""Words for keys whose last part alone would be unclear."""


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the comparison.

    `defense` and `scale` are for display; without a defense they are `UNDEFENDED` and "". `strength` has both in one
    phrase, or "no defense". `differences` are other differences between the rows of one attack, such as "ways 5".
    `status` is "done", or names what went wrong, and then `error` says why. `config` is the experiment's, as far as
    it is known, with this attack's targets. `run` and `attack_files` are the results behind the row, if there are
    any.
    """

    defense: str
    scale: str
    strength: str
    differences: tuple[str, ...]
    attack: str
    status: str
    error: str | None
    config: Mapping[str, Any]
    run: RunResult | None
    attack_files: AttackFiles | None

    @property
    def attack_result(self) -> AttackResult | None:
        """The attack's result, if there is one."""
        return self.attack_files.result if self.attack_files else None

    @property
    def setting(self) -> str:
        """The differences in one phrase."""
        return ", ".join(self.differences)

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation of how well the attack tells members from non-members, if there is one."""
        return self.attack_result.evaluation if self.attack_result else None

    @property
    def resampled(self) -> str | None:
        """What the intervals resample, if not single targets: "40 learners resampled"."""
        if self.attack_result is None or self.evaluation is None or self.evaluation.clusters is None:
            return None
        if self.attack_result.mean_of > 1:
            return f"for this one mean of {self.attack_result.mean_of} learners"
        clusters = self.evaluation.clusters
        if self.attack_result.asks == "start":
            return f"{clusters} released models resampled"
        return "for this one learner" if clusters == 1 else f"{clusters} learners resampled"

    @property
    def headline(self) -> Measure | None:
        """The measure of the attack's main purpose, if it was measured."""
        return self.attack_result.headline if self.attack_result else None

    @property
    def headlines(self) -> tuple[Measure, ...]:
        """The measures by which the attack is compared with others."""
        return self.attack_result.headlines if self.attack_result else ()

    def measure(self, name: str) -> Measure | None:
        """Return the attack's measure of this name, if it was measured."""
        measures = self.attack_result.measures if self.attack_result else ()
        return next((one for one in measures if one.name == name), None)

    @property
    def is_ceiling(self) -> bool:
        """Whether the attack is a ceiling: it is given more than any adversary has."""
        return self.attack_result is not None and self.attack_result.ceiling

    @property
    def accuracy(self) -> Estimate | None:
        """The run's last adapted accuracy, or a study's downstream accuracy, if it was measured."""
        if self.run and self.run.accuracy:
            return self.run.accuracy
        released = self.attack_result and self.attack_result.released
        return released.accuracy if released else None

    @property
    def is_study(self) -> bool:
        """Whether the row is of a study of pretraining, which has no learners and no messages."""
        return "pool" in self.config

    @property
    def accuracy_name(self) -> str:
        """What `accuracy` is called."""
        return "downstream accuracy" if self.is_study else "adapted accuracy"

    @property
    def defense_name(self) -> str:
        """The defense as words of a sentence."""
        return "no defense" if self.defense == UNDEFENDED else self.defense

    @property
    def revealing(self) -> tuple[str, float] | None:
        """The attack's statistic that reveals clearly more than its score, with its AUC, or `None`."""
        if self.evaluation is None or self.attack_result is None or not self.attack_result.statistics:
            return None
        by_leak = {name: leak(auc.value) for name, auc in self.attack_result.statistics.items()}
        name = max(by_leak, key=by_leak.__getitem__)
        return (name, by_leak[name]) if by_leak[name] > leak(self.evaluation.auc.value) + _CLEARLY_MORE else None

    @property
    def leak(self) -> float:
        """How far from guessing the attack's score, or its best statistic, is: an AUC in [0.5, 1]."""
        own = leak(self.evaluation.auc.value) if self.evaluation else 0.5
        return max(own, self.revealing[1]) if self.revealing else own

    @property
    def label(self) -> str:
        """Defense, scale and setting in one phrase."""
        return f"{self.strength} ({self.setting})" if self.setting else self.strength


def leak(auc: float) -> float:
    """Return how far an AUC is from guessing, in [0.5, 1]: a reversed order leaks as much."""
    return max(auc, 1 - auc)


def rows_of(result: Results) -> list[Row]:
    """Return the rows of a run (one per attack) or a suite (one per cell, including failed ones), in their order."""
    if result.cells is not None:
        rows = [_cell_row(cell, result.runs.get(cell.run)) for cell in result.cells]
    else:
        rows = [_run_row(run, attack) for run in result.runs.values() for attack in run.attacks or (None,)]
    return _with_settings(_with_structures(rows))


def comparison_rows(result: Results) -> list[Row]:
    """Return the rows of `result` so that those of one setting and attack stand together.

    Of those the undefended come first, then by defense and rising scale.
    """
    return sorted(rows_of(result), key=_order)


def describe_run(run: RunResult) -> str:
    """Return the defenses of a run in one phrase."""
    return _run_row(run, None).label


def _run_row(run: RunResult, attack: AttackFiles | None) -> Row:
    status, error = str(run.state.status), run.state.error
    if status == "done" and (attack is None or attack.result.headline is None):
        status = "not attacked" if attack is None else "not evaluated"
    config = _with_targets(run.config, attack.result.targets if attack else {})
    return Row(*_words(_defenses(run.config)), (), attack.name if attack else "–", status, error, config, run, attack)


def _cell_row(cell: Cell, run: RunResult | None) -> Row:
    attack = next((one for one in run.attacks if one.name == cell.attack), None) if run else None
    defenses = cell.defenses or (_defenses(run.config) if run else ())
    error: str | None
    if cell.status == "failed":
        status, error = "failed", cell.error or "no reason was recorded"
    elif cell.status != "done":
        status, error = cell.status, cell.error
    elif run is None:
        status, error = "missing", f"{cell.run} is not there"
    else:
        whole = _run_row(run, attack)
        status, error = whole.status, whole.error
    # A suite names its results by attack and hash: what differs between the hashes stands in the setting.
    name = attack.kind if attack else str(cell.attack_config.get("name") or cell.attack)
    # What was planned fills in for a run that was never begun, or an attack without a result.
    targets = attack.result.targets if attack else cell.experiment.get("targets") or {}
    config = _with_targets(run.config if run else cell.experiment, targets)
    return Row(*_words(defenses), (), name, status, error, config, run, attack)


def _words(defenses: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """Return a row's defense, scale and strength."""
    return *describe_defenses(defenses), describe_strength(defenses) if defenses else "no defense"


def _with_targets(config: Mapping[str, Any], targets: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `config` with the `targets` of one attack, where they are known: a run's file has those of its first."""
    return {**config, "targets": targets} if targets else config


def _defenses(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = config.get("defenses")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _with_structures(rows: list[Row]) -> list[Row]:
    """Name the rule among the defenses, where rows on the same model and data differ in it."""
    said = [describe_structure(row.config.get("rule")) for row in rows]
    subjects = [(str(row.config.get("model")), str(row.config.get("data"))) for row in rows]
    found: dict[tuple[str, str], set[str]] = {}
    for words, subject in zip(said, subjects, strict=True):
        found.setdefault(subject, set()).add(words)
    return [
        _with_structure(row, words) if words and len(found[subject]) > 1 else row
        for row, words, subject in zip(rows, said, subjects, strict=True)
    ]


def _with_structure(row: Row, words: str) -> Row:
    if row.defense == UNDEFENDED:
        return replace(row, defense=words, strength=words)
    return replace(row, defense=f"{words} + {row.defense}", strength=f"{words} + {row.strength}")


def _with_settings(rows: list[Row]) -> list[Row]:
    """Name, for each row, the values in which its run or attack differs from others of the same attack."""
    named = list(rows)
    for attack in {row.attack for row in rows}:
        members = [index for index, row in enumerate(rows) if row.attack == attack and row.config]
        flat = {index: dict(_knobs(rows[index])) for index in members}
        keys = dict.fromkeys(key for knobs in flat.values() for key in knobs)
        varying = [key for key in keys if len({knobs[key] for knobs in flat.values() if key in knobs}) > 1]
        for index in members:
            parts = tuple(f"{short_key(key)} {flat[index][key]}" for key in varying if key in flat[index])
            named[index] = replace(rows[index], differences=parts)
    return named


def _knobs(row: Row) -> Iterator[tuple[str, str]]:
    """Yield what was set for a row, as dotted keys and text."""
    for key, value in flattened(row.config):
        if key not in _OUTSIDE and key.partition(".")[0] not in _OUTSIDE:
            yield key, value
    if row.attack_result:
        yield from flattened({"attack": row.attack_result.attack})


def flattened(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested mappings as dotted keys and text."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def short_key(key: str) -> str:
    """Return the words for a dotted key: its last part, or what it names."""
    if key in _TARGET_WORDS:
        return _TARGET_WORDS[key]
    *parents, last = key.split(".")
    return parents[-1] if parents and last == "name" else last.replace("_", " ")


def _order(row: Row) -> tuple[str, str, bool, str, float, str]:
    try:
        scale = float(row.scale or 0)
    except ValueError:
        scale = 0.0
    return row.attack, row.setting, row.defense != UNDEFENDED, row.defense, scale, row.scale
