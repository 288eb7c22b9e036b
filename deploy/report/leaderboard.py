"""The leaderboard: a suite's cells as a machine-readable table, one row each, in Parquet and in JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.measures import AUC, Measure, tpr_at
from metaleak.deploy.report.rows import Row, rows_of
from metaleak.deploy.results.reading import SuiteResult
from metaleak.deploy.results.schema import Cell
from metaleak.deploy.simulate.run_directory import write_text
from metaleak.server.record.whole_file import write_whole

NAME = "leaderboard"

_TEXT, _NUMBER, _WHOLE, _TRUTH = pa.string(), pa.float64(), pa.int64(), pa.bool_()

COLUMNS: Mapping[str, tuple[Any, str]] = {
    "cell": (_TEXT, "the cell's id: a hash of run and attack, the same in every call"),
    "status": (_TEXT, "`done`, `failed`, `not applicable` (not with this model or these defenses) or `waiting`"),
    "error": (_TEXT, "why, unless it is `done`"),
    "data": (_TEXT, "data set; in a study of pretraining that of the pool"),
    "downstream": (_TEXT, "in a study of pretraining the data set that models are finetuned on"),
    "model": (_TEXT, "model"),
    "model_settings": (_TEXT, "the model's settings, JSON"),
    "rule": (_TEXT, "meta-learning rule"),
    "rule_settings": (_TEXT, "the rule's settings, JSON"),
    "ways": (_WHOLE, "classes of a task"),
    "shots": (_WHOLE, "support images a class"),
    "queries": (_WHOLE, "query images a class"),
    "learners": (_WHOLE, "learners in the federation"),
    "seed": (_WHOLE, "the experiment's seed"),
    "defense": (_TEXT, "the defenses in words, `undefended` without any"),
    "scale": (_TEXT, "the defenses' scales, empty where there is none"),
    "defenses": (_TEXT, "the defenses with all settings, JSON"),
    "attack": (_TEXT, "attack, empty for a run that is not attacked"),
    "attack_settings": (_TEXT, "the attack's settings, JSON"),
    "asks": (
        _TEXT,
        "the set that is asked about, `query`, `support`, or `start`: the training behind released models",
    ),
    "knows": (_TEXT, "the threat model: what the adversary holds beside what the server sees"),
    "round": (_WHOLE, "the first recorded round that is attacked"),
    "rounds": (_WHOLE, "recorded rounds that are attacked together"),
    "members": (_WHOLE, "targets that the learner holds"),
    "non_members": (_WHOLE, "targets that no learner holds"),
    "clusters": (
        _WHOLE,
        "learners behind the intervals; 1 where they hold for one mean or one learner alone, null where learners "
        "are not told apart",
    ),
    "mean_of": (_WHOLE, "learners of whom the server saw the mean alone, 1 where it saw each by itself"),
    "measure": (_TEXT, "the attack's headline, such as `AUC`: what `value` is"),
    "value": (_NUMBER, "how much the attack learned, by that measure"),
    "value_low": (_NUMBER, "lower end of its 95 % interval"),
    "value_high": (_NUMBER, "upper end"),
    "higher_leaks": (_TRUTH, "whether a higher `value` means that more was learned"),
    "auc": (_NUMBER, "area under the ROC curve"),
    "auc_low": (_NUMBER, "lower end of its 95 % interval"),
    "auc_high": (_NUMBER, "upper end"),
    "tpr_0.001": (_NUMBER, "true-positive rate at a false-positive rate of 0.1 %, null with too few non-members"),
    "tpr_0.001_low": (_NUMBER, "lower end of its 95 % interval"),
    "tpr_0.001_high": (_NUMBER, "upper end"),
    "tpr_0.01": (_NUMBER, "the same at 1 %"),
    "tpr_0.01_low": (_NUMBER, "lower end of its 95 % interval"),
    "tpr_0.01_high": (_NUMBER, "upper end"),
    "accuracy": (
        _NUMBER,
        "adapted accuracy on held-out tasks, of the run's last measured round; in a study of pretraining that of "
        "released models on the downstream examples",
    ),
    "accuracy_low": (_NUMBER, "lower end of its 95 % interval"),
    "accuracy_high": (_NUMBER, "upper end"),
    "bytes_per_learner": (_WHOLE, "bytes that carry one learner's defended meta-gradient"),
    "dense_bytes": (_WHOLE, "bytes of the same in float32, undefended"),
    "epsilon_accounted": (
        _NUMBER,
        "epsilon that the defense promises one learner for the whole run, and for noise that is secret (a "
        "simulation's comes from the seed), null without a promise",
    ),
    "epsilon_accounted_attacked": (_NUMBER, "the same for the rounds up to the last that is attacked"),
    "epsilon_lower_bound": (_NUMBER, "empirical epsilon: the attack proves at least this much"),
    "epsilon_lower_bound_ceiling": (_NUMBER, "the most that this bound can be with so many targets and learners"),
    "epsilon_lower_bound_gaussian": (
        _NUMBER,
        "the sharper empirical epsilon by the mechanism's mu, where the defense is known to be Gaussian",
    ),
    "epsilon_lower_bound_gaussian_ceiling": (_NUMBER, "the most that this one can be"),
    "epsilon_audited": (_NUMBER, "what an audit with inputs of the adversary's choice proves of the whole run"),
    "delta": (_NUMBER, "the delta of all of these"),
    "confidence": (_NUMBER, "of each lower bound"),
    "run_seconds": (_NUMBER, "what the simulation took; several cells share it"),
    "attack_seconds": (_NUMBER, "what the attack took"),
    "run": (_TEXT, "the run's directory in the suite's"),
    "result": (_TEXT, "the attack's directory in `attacks/` of the run"),
}
"""The columns in their order: type and meaning."""


def write_leaderboard(suite: SuiteResult) -> Path:
    """Write `leaderboard.parquet` and `leaderboard.json` into the suite's directory; return the Parquet file."""
    rows = leaderboard(suite)
    schema = pa.schema([pa.field(name, kind, metadata={"about": about}) for name, (kind, about) in COLUMNS.items()])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    write_whole(suite.path / f"{NAME}.parquet", sink.getvalue().to_pybytes())
    content = {"suite": suite.name, "columns": {name: about for name, (_, about) in COLUMNS.items()}, "rows": rows}
    write_text(suite.path / f"{NAME}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return suite.path / f"{NAME}.parquet"


def leaderboard(suite: SuiteResult) -> list[dict[str, Any]]:
    """Return one row per cell, with a value for each of `COLUMNS`, in the order of the suite."""
    return [_row(cell, row) for cell, row in zip(suite.cells, rows_of(suite), strict=True)]


def _row(cell: Cell, row: Row) -> dict[str, Any]:
    config, result, task = row.config, row.attack_result, row.config.get("task") or {}
    evaluation, privacy, cost = row.evaluation, result and result.privacy, result and result.cost
    headline = row.headline
    attack = dict(result.attack if result else cell.attack_config)
    plain = {
        "cell": cell.id,
        "status": cell.status,
        "error": cell.error,
        "data": _data(config) or _data(config.get("pool")),
        "downstream": _data(config.get("downstream")),
        **_named("model", config),
        **_named("rule", config),
        **{key: task.get(key) for key in ("ways", "shots", "queries")},
        "learners": (config.get("partition") or {}).get("learners"),
        "seed": config.get("seed"),
        "defense": row.defense,
        "scale": row.scale,
        "defenses": json.dumps(cell.defenses),
        "attack": attack.pop("name", cell.attack),
        "attack_settings": json.dumps(attack),
        "asks": result.asks if result else attack.get("asks"),
        "knows": result and result.knows,
        "round": result and result.round,
        "rounds": result and result.rounds,
        "members": evaluation and evaluation.members,
        "non_members": evaluation and evaluation.non_members,
        "clusters": evaluation and evaluation.clusters,
        "mean_of": result and result.mean_of,
        "measure": headline and headline.name,
        **_interval("value", headline),
        "higher_leaks": headline and headline.higher_leaks,
        **_interval("auc", row.measure(AUC)),
        **_interval("tpr_0.001", row.measure(tpr_at("0.001"))),
        **_interval("tpr_0.01", row.measure(tpr_at("0.01"))),
        **_interval("accuracy", row.accuracy),
        "bytes_per_learner": cost and cost.bytes_per_learner,
        "dense_bytes": cost and cost.dense_bytes,
        "epsilon_accounted": privacy and privacy.accounted_run,
        "epsilon_accounted_attacked": privacy and privacy.accounted,
        "epsilon_lower_bound": privacy and privacy.lower_bound,
        "epsilon_lower_bound_ceiling": privacy and privacy.ceiling,
        "epsilon_lower_bound_gaussian": privacy and privacy.gaussian_lower_bound,
        "epsilon_lower_bound_gaussian_ceiling": privacy and privacy.gaussian_ceiling,
        "epsilon_audited": privacy and privacy.audited,
        "delta": privacy and privacy.delta,
        "confidence": privacy and privacy.confidence,
        "run_seconds": row.run and row.run.state.seconds,
        "attack_seconds": result and result.seconds,
        "run": cell.run,
        "result": cell.attack,
    }
    return {name: plain[name] for name in COLUMNS}


def _named(key: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name of a thing, and its settings as JSON."""
    plain = dict(config.get(key) or {})
    name = plain.pop("name", None)
    return {key: name, f"{key}_settings": json.dumps(plain)}


def _data(config: object) -> Any:
    """Return the name of the data set of an experiment or of a part of a study, `None` without one."""
    data = config.get("data") if isinstance(config, Mapping) else None
    return data.get("name") if isinstance(data, Mapping) else None


def _interval(name: str, estimate: Estimate | Measure | None) -> dict[str, float | None]:
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {f"{name}{end}": getattr(estimate, field) if estimate else None for end, field in ends.items()}
