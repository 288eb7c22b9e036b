"""The verdict in plain words: what attacks find without a defense, which defenses stop them, and what these cost."""

from collections.abc import Sequence
from itertools import groupby

from metaleak.attacks.evaluation.measures import AUC
from metaleak.attacks.evaluation.membership import Evaluation
from metaleak.deploy.config.defense_words import UNDEFENDED
from metaleak.deploy.report.rows import Row, leak
from metaleak.deploy.report.settings import Line, Setting
from metaleak.deploy.report.wording import level_text, measure_text, rate_text

STOPPED_AUC = 0.60
"""A defense stops an attack when the AUC is no further from guessing than this."""

CHEAP_LOSS = 0.03
"""A defense is cheap when it costs no more accuracy than this, as a fraction."""


def answer(found: Sequence[Setting]) -> list[str]:
    """Return at most three sentences: what leaks without a defense, what protects at which cost, what is guaranteed.

    They are about the first setting in which an attack that asks for membership was evaluated, which is named where
    there are several.
    """
    setting = next((one for one in found if any(line.strongest() for line in one.lines)), None)
    if setting is None:
        return []
    sentences = []
    # Model, data and task; the rest of the title stands above the table.
    where = f" ({', '.join(setting.title.split(', ')[:2])})" if len(found) > 1 else ""
    bare = next((line for line in setting.lines if line.rows[0].defense == UNDEFENDED), None)
    if bare is not None and (strongest := bare.strongest()):
        sentences.append(f"Without a defense{where}, the {strongest.row.attack} attack {describe(strongest.row)}.")
    defended = [line for line in setting.lines if line is not bare and line.strongest()]
    if defended:
        sentences.append(_least_costly(bare, defended))
        promised = [line for line in defended if line.privacy and line.privacy.accounted_run is not None]
        private = any(row.attack_result and row.attack_result.released and row.attack_result.released.epsilon
                      for line in defended for row in line.rows)  # fmt: skip
        if promised:
            sentences.append(_guaranteed(promised))
        elif private:
            sentences.append(
                "Private finetuning protects the downstream examples by its epsilon, but not the pretraining data."
            )
        else:
            sentences.append("None of these defenses has a guarantee: what the attacks here do not find, others may.")
    return sentences


def _least_costly(bare: Line | None, defended: Sequence[Line]) -> str:
    counted = f"{len(defended)} defense{'s' if len(defended) > 1 else ''}"
    limit = f"an AUC of {STOPPED_AUC:.2f}"
    held = [(line, leaked) for line in defended if (leaked := _leaked(line)) <= STOPPED_AUC]
    if not held:
        line, leaked = min(((line, _leaked(line)) for line in defended), key=lambda one: one[1])
        least = f"the strongest attack on {line.defense} reaches {leaked:.3f}"
        return f"None of {counted} keeps every attack below {limit}; {least}."
    known = [(line, leaked) for line, leaked in held if line.accuracy]
    kept = f"{len(held)} of {counted} keep{'s' if len(held) == 1 else ''} every attack below {limit}"
    if not known:
        return f"{kept}; what they cost in accuracy was not measured."
    line, leaked = max(known, key=lambda one: one[0].accuracy.value if one[0].accuracy else 0.0)
    cost = f"{rate_text(line.accuracy, percent=True)[0]}" if line.accuracy else "–"
    instead = f" instead of {rate_text(bare.accuracy, percent=True)[0]}" if bare and bare.accuracy else ""
    name = line.rows[0].accuracy_name
    return f"{kept}; {line.defense} costs least: {name} {cost}{instead}, strongest attack AUC {leaked:.3f}."


def _guaranteed(promised: Sequence[Line]) -> str:
    broken = next((one for one in promised if one.privacy and one.privacy.violated), None)
    if broken is not None:
        return f"{broken.defense} breaks its promise: an attack proves more than the epsilon that is accounted for."
    line = min(promised, key=lambda one: (one.privacy and one.privacy.accounted_run) or 0.0)
    if line.privacy is None or line.privacy.accounted_run is None:
        raise ValueError(f"{line.defense}: promises nothing")
    others = f" ({len(promised)} defenses have a guarantee)" if len(promised) > 1 else ""
    proven = line.privacy.proven
    proof = (
        f"the attacks prove that it is at least {proven:.2f}"
        if proven >= 0.005
        else "the attacks here prove no lower bound"
    )
    return (
        f"A guarantee also holds against attacks that nobody has tried yet: {line.defense} promises epsilon "
        f"≤ {line.privacy.accounted_run:.3g} for the whole run; {proof}{others}."
    )


def _leaked(line: Line) -> float:
    """Return how far the strongest membership attack is from guessing, as an AUC in [0.5, 1]."""
    return max((row.leak for row in line.rows if row.evaluation and not row.is_ceiling), default=0.5)


def verdict(rows: Sequence[Row]) -> list[str]:
    """Return sentences about `rows`, grouped by attack and setting, in the rows' order.

    Defenses are judged on the point estimates, by the attack's score and by each of its statistics. Of an attack that
    is not made for membership its headline is given, too, without a judgment; rows without a result give no sentence.
    """
    sentences = []
    for (attack, setting), members in groupby(rows, key=lambda row: (row.attack, row.setting)):
        group = list(members)
        evaluated = [row for row in group if row.evaluation]
        kind = "ceiling" if any(row.is_ceiling for row in group) else "attack"
        about = f"the {attack} {kind} ({setting})" if setting else f"the {attack} {kind}"
        bare = [row for row in evaluated if row.defense == UNDEFENDED]
        defended = [row for row in evaluated if row.defense != UNDEFENDED]
        sentences += [
            f"Against {row.label}, {about} reaches {measure_text(row.headline)}."
            for row in group
            if row.headline and row.headline.name != AUC
        ]
        for row in bare:
            sentences.append(f"Without a defense, {about} {describe(row)}.")
        if len(defended) == 1:
            sentences.append(f"Under {defended[0].label}, {about} {describe(defended[0])}.")
        if bare and defended:
            sentences.append(_held(about, bare[0], defended))
            sentences += [
                f"Under {row.label} {about} only seems to fail: its statistic {row.revealing[0]} alone reaches "
                f"AUC {row.revealing[1]:.3f}."
                for row in defended
                if row.revealing and row.evaluation and leak(row.evaluation.auc.value) <= STOPPED_AUC < row.leak
            ]
        elif len(defended) > 1:
            sentences.append(
                f"There is no undefended run to compare {about} with: what its defenses cost is unknown."
            )
    return sentences


def describe(row: Row) -> str:
    """Return what an evaluated row's attack achieved, as the rest of a sentence that begins with it."""
    if row.evaluation is None:
        raise ValueError(f"{row.label}: not evaluated")
    evaluation = row.evaluation
    value, interval = rate_text(evaluation.auc)
    words = f"{_strength(evaluation)}: AUC {value} (95 % interval {interval})"
    resolved = [(level, estimate) for level, estimate in evaluation.tpr.items() if estimate]
    if not resolved:
        return words
    level, estimate = min(resolved, key=lambda pair: float(pair[0]))
    found = round(estimate.value * evaluation.members)
    words += (
        f"; it finds {found} of {evaluation.members} members while accusing at most {level_text(level)} of"
        f" {evaluation.non_members} non-members"
    )
    if evaluation.auc.low <= 0.5 and estimate.low > float(level):
        words += ", more than guessing would: some learners are exposed although the average looks safe"
    return words


def _strength(evaluation: Evaluation) -> str:
    auc = evaluation.auc
    if auc.low <= 0.5 <= auc.high:
        return "cannot be told from guessing on these targets"
    if auc.high < 0.5:
        return "ranks members below non-members, which gives away as much as the reverse"
    for bound, words in ((0.6, "is slightly better than guessing"), (0.75, "tells some members apart")):
        if auc.value < bound:
            return words
    return "tells most members apart" if auc.value < 0.95 else "tells members from non-members almost always"


def _held(about: str, bare: Row, defended: Sequence[Row]) -> str:
    if bare.accuracy is None:
        name = bare.accuracy_name.capitalize()
        return f"{name} was not measured without a defense: what it costs to stop {about} is unknown."
    limit = f"an AUC of {1 - STOPPED_AUC:.2f} to {STOPPED_AUC:.2f}"
    limit += f" with a loss of at most {CHEAP_LOSS * 100:g} points of {bare.accuracy_name}"
    held = [
        (bare.accuracy.value - row.accuracy.value, row, row.evaluation.auc)
        for row in defended
        if row.evaluation and row.accuracy
        # 1e-9 allows for rounding: 0.93 - 0.90 is more than 0.03.
        if row.leak <= STOPPED_AUC and bare.accuracy.value - row.accuracy.value <= CHEAP_LOSS + 1e-9
    ]
    if not held:
        return f"None of the {len(defended)} defended runs keeps {about} at {limit}."
    loss, row, auc = min(held, key=lambda one: one[0])
    value, interval = rate_text(auc)
    cost = f"{loss * 100:.1f} points lost" if loss > 0 else "no loss measured"
    runs = f"{len(held)} of {len(defended)} defended runs {'keeps' if len(held) == 1 else 'keep'}"
    cheapest = f"{row.label} (AUC {value}, 95 % interval {interval}; {cost})"
    return f"{runs} {about} at {limit}. The cheapest is {cheapest}."
