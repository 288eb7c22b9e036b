"""A suite divided into settings: for every defense the strongest attack on it, and its costs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.measures import AUC, Measure
from metaleak.deploy.config.defense_words import RULE_STRUCTURE
from metaleak.deploy.report.rows import Row, flattened, short_key
from metaleak.deploy.results.schema import Cost, Privacy

Asked = Literal["query", "support", "start"]
_SETS: tuple[Asked, ...] = ("query", "support", "start")

_DEFENDING = ("name", "defenses", "attacks", "engine", "record", "evaluation")
"""Keys of an experiment that are not part of a setting; of `rule` only what acts as a defense is not."""

_TITLED = (
    "model.name",
    "data.name",
    "pool.data.name",
    "downstream.data.name",
    "task.ways",
    "task.shots",
    "task.queries",
    "partition.learners",
)


_SECRET_NOISE = (
    "An accounted epsilon (≤) holds for noise that the server cannot compute. A simulation draws the noise from the "
    "experiment's seed, so that it can be repeated; on Flower's deployment engine each SuperNode has a secret key."
)


@dataclass(frozen=True)
class Found:
    """An attack's row with one of its `headline` measures."""

    row: Row
    headline: Measure

    @property
    def strength(self) -> Measure:
        """How much the attack learned; see `strength`."""
        return strength(self.headline)

    @property
    def reversed(self) -> bool:
        """Whether the attack ranks members below others."""
        return self.strength.value != self.headline.value

    @property
    def leak(self) -> float:
        """The strength with a sign such that higher leaks more."""
        return self.strength.value if self.strength.higher_leaks else -self.strength.value


@dataclass(frozen=True, eq=False)
class Line:
    """One defense at one scale in a setting, with the rows of all attacks on it."""

    rows: tuple[Row, ...]

    @property
    def defense(self) -> str:
        """The defense, and its scale where it has one."""
        return self.rows[0].strength

    @property
    def accuracy(self) -> Estimate | None:
        """The accuracy, if it was measured."""
        return next((row.accuracy for row in self.rows if row.accuracy), None)

    @property
    def cost(self) -> Cost | None:
        """The bytes of one learner's message."""
        return next(
            (row.attack_result.cost for row in self.rows if row.attack_result and row.attack_result.cost), None
        )

    @property
    def privacy(self) -> Privacy | None:
        """The guarantee, with the greatest lower bounds that any of the attacks puts on it."""
        known = [row.attack_result.privacy for row in self.rows if row.attack_result and row.attack_result.privacy]
        gaussian = [one.gaussian_lower_bound for one in known if one.gaussian_lower_bound is not None]
        best = max(known, key=lambda one: one.lower_bound, default=None)
        return best and best.model_copy(update={"gaussian_lower_bound": max(gaussian, default=None)})

    def strongest(self, asked: Asked | None = None, measure: str = AUC) -> Found | None:
        """Return the strongest attack on the set `asked` (or on any set) by the headline `measure`, or `None`.

        It is chosen on the targets that it is measured on, which favors it a little.
        """
        found = [
            Found(row, headline)
            for row in self.rows
            for headline in row.headlines
            if headline.name == measure
            and row.attack_result
            and not row.is_ceiling
            and asked in (None, row.attack_result.asks)
        ]
        return max(found, key=lambda one: one.leak, default=None)

    @property
    def troubles(self) -> list[str]:
        """For each row without a result, the attack and its status."""
        return [f"{row.attack}: {row.status}" for row in self.rows if row.status not in ("done", "not applicable")]


@dataclass(frozen=True, eq=False)
class Setting:
    """A setting: in its `lines` everything except defenses and attacks is the same, including targets."""

    title: str
    lines: tuple[Line, ...]

    @property
    def measures(self) -> list[str]:
        """The names of the attacks' headline measures, the AUC first."""
        names = {headline.name for line in self.lines for row in line.rows for headline in row.headlines}
        return sorted(names, key=lambda name: (name != AUC, name))

    @property
    def asked(self) -> tuple[Asked, ...]:
        """The sets that its attacks ask about: some of `query`, `support` and `start`."""
        kinds = {row.attack_result.asks for line in self.lines for row in line.rows if row.attack_result}
        return tuple(one for one in _SETS if one in kinds) or _SETS[:2]

    @property
    def other_measures(self) -> list[str]:
        """The names of the headline measures that are not about membership."""
        return [name for name in self.measures if name != AUC]

    def frontier(self, measure: str = AUC) -> list[Line]:
        """Return the lines that no other beats in both accuracy and strongest attack, ordered by accuracy.

        Only attacks with the headline `measure` count.
        """
        known = [(line, line.accuracy.value, found.leak) for line in self.lines
                 if line.accuracy and (found := line.strongest(measure=measure))]  # fmt: skip
        best: list[Line] = []
        lowest = float("inf")
        for line, _, leak in sorted(known, key=lambda one: (-one[1], one[2])):
            if leak < lowest:
                best.append(line)
                lowest = leak
        return best[::-1]


def strength(headline: Measure) -> Measure:
    """Return how much an attack with this headline learned.

    An AUC whose whole interval is below 0.5 is reversed; others below 0.5, which may be chance, stay as they are.
    """
    if headline.name != AUC or headline.high >= 0.5:
        return headline
    reverse = {"value": 1 - headline.value, "low": 1 - headline.high, "high": 1 - headline.low}
    return headline.model_copy(update=reverse)


def settings(rows: Sequence[Row]) -> list[Setting]:
    """Return the settings of `rows`, and in each the lines, in the rows' order."""
    grouped: dict[str, dict[tuple[str, str, str], list[Row]]] = {}
    configs: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        config = _setting(row.config)
        key = json.dumps(config, sort_keys=True, default=str)
        configs[key] = config
        # A defense's other settings are part of its words; a run that was never begun has its cell's config.
        grouped.setdefault(key, {}).setdefault((row.defense, row.scale, str(row.run and row.run.path)), []).append(
            row
        )
    titles = _titles(list(configs.values()))
    return [
        Setting(title, tuple(Line(tuple(own)) for own in lines.values()))
        for title, lines in zip(titles, grouped.values(), strict=True)
    ]


def knows(rows: Sequence[Row]) -> dict[str, str]:
    """Return the threat model of every attack among `rows`: what its adversary has besides what the server sees."""
    return {row.attack: row.attack_result.knows for row in rows if row.attack_result and row.attack_result.knows}


def condition_of_epsilon(rows: Sequence[Row]) -> list[str]:
    """Return the condition of accounted epsilons, a sentence, or nothing where `rows` have no such epsilon."""
    results = [row.attack_result for row in rows if row.attack_result]
    promised = any(result.privacy and result.privacy.accounted is not None for result in results)
    return [_SECRET_NOISE] if promised else []


def ceilings(found: Sequence[Setting]) -> list[str]:
    """Return a sentence on why lower bounds on epsilon are not higher, where a perfect attack proves no more."""
    known = [line.privacy for setting in found for line in setting.lines if line.privacy]
    reached = sorted({f"{one.ceiling:.2f}" for one in known if one.at_ceiling and one.ceiling})
    if not reached:
        return []
    return [
        f"An epsilon of {' or '.join(reached)} is all that a perfect attack can prove with so few targets or "
        "learners: even without a single error, error rates of a few per cent cannot be ruled out with 95 % "
        "confidence, and epsilon is the logarithm of how much likelier the attack is right than wrong. The true "
        "epsilon may be larger; more targets, of more learners, raise this ceiling."
    ]


def _setting(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in _DEFENDING}
    if isinstance(rule := kept.get("rule"), Mapping):
        kept["rule"] = {key: value for key, value in rule.items() if key not in RULE_STRUCTURE}
    return kept


def _titles(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a title for each setting: model, data, task, and the keys that differ on the same model and data."""
    flat = [dict(flattened(config)) for config in configs]
    values: dict[tuple[str, str], set[str]] = {}
    for one in flat:
        for key, value in one.items():
            values.setdefault((_about(one)[0], key), set()).add(value)
    titles = []
    for one in flat:
        subject = _about(one)[0]
        differing = [key for key in one if key not in _TITLED and len(values[subject, key]) > 1]
        titles.append(", ".join([*_about(one), *(f"{short_key(key)} {one[key]}" for key in differing)]))
    return titles


def _about(flat: Mapping[str, str]) -> list[str]:
    if "pool.data.name" in flat:
        source, after = flat["pool.data.name"], flat.get("downstream.data.name", "data")
        return [f"{flat.get('model.name', 'model')} on {source}, finetuned on {after}"]
    if not {"model.name", "data.name"} & set(flat):
        return ["record of another app"]
    model, data = flat.get("model.name", "model"), flat.get("data.name", "data")
    units = {"ways": "way", "shots": "shot", "queries": "query"}
    task = " ".join(f"{flat[f'task.{key}']}-{unit}" for key, unit in units.items() if f"task.{key}" in flat)
    learners = flat.get("partition.learners")
    return [f"{model} on {data}", *([task] if task else []), *([f"{learners} learners"] if learners else [])]
