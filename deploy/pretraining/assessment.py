"""Attacks on the models of a study, each victim in turn with its shadows, and their evaluation."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from metaleak.attacks.evaluation.intervals import Estimate, over_seeds
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.pretraining.evidence import PretrainingAttack, ShadowAnswers
from metaleak.attacks.pretraining.query import Query, ask, restricted
from metaleak.attacks.work import Work
from metaleak.clients.randomness import derived_seed
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.pretraining.examples import downstream_of, points, pool_of
from metaleak.deploy.pretraining.finetuning import mechanism
from metaleak.deploy.pretraining.shadow_models import ModelAnswers, answers_of, in_turn, metered, queries_about
from metaleak.deploy.pretraining.study import Study
from metaleak.deploy.results.arrays import write_columns
from metaleak.deploy.results.json_file import write_json
from metaleak.deploy.results.schema import AttackResult, ReleasedModels


@dataclass(frozen=True, eq=False)
class Pooled:
    """The scores of all V victims for all P points; `scores`, `member`, `victim` and `point` are `(V * P,)`."""

    scores: Tensor
    member: Tensor
    victim: Tensor
    point: Tensor


@dataclass(frozen=True, eq=False)
class Victim:
    """The answers `probabilities (p, A, K)` of a third party's model about p of the study's P points.

    These are the points with an answer to every query: `answered (P,)` are booleans, `examples (p,)` their places in
    the data set. `complaint` is one line about the other queries, or empty.
    """

    examples: Tensor
    probabilities: Tensor
    answered: Tensor
    complaint: str


def planned(study: Study) -> dict[str, tuple[str, Plugin]]:
    """Return finetuning and attack by the name of their result."""
    found: dict[str, tuple[str, Plugin]] = {}
    for finetuning in study.finetunings:
        for attack in study.attacks:
            name = attack.name.rpartition(":")[2]
            if len(study.finetunings) > 1:
                name = f"{finetuning}-{name}"
            number, base = 1, name
            while name in found:
                number += 1
                name = f"{base}-{number}"
            found[name] = (finetuning, attack)
    return found


def attack_models(study: Study, answers: list[ModelAnswers], attack: PretrainingAttack, work: Work) -> Pooled:
    """Return the scores of `attack` for every point of every victim."""
    sees_pretrained = bool(getattr(attack, "sees_pretrained", False))
    asked = torch.stack([one.start if sees_pretrained else one.probabilities for one in answers])
    shown = asked if sees_pretrained else restricted(asked, study.queries.access)
    member = torch.stack([one.member for one in answers])
    everything = ShadowAnswers(shown, member)
    scores, victims = [], []
    turns = list(in_turn(study))
    for done, (victim, shadows) in enumerate(turns):
        own = Work(derived_seed(work.seed, victim), None, work.map)
        scores.append(attack(everything.of(torch.tensor(shadows)), shown[victim], own))
        victims.append(victim)
        work.report(done + 1, len(turns))
    count = member.shape[1]
    return Pooled(
        torch.cat(scores),
        member[torch.tensor(victims)].flatten(),
        torch.tensor(victims).repeat_interleave(count),
        torch.arange(count).repeat(len(victims)),
    )


def assess_study(study: Study, folder: Path, out: Path, work: Work, resamples: int = 1000) -> dict[str, AttackResult]:
    """Attack the models in `folder` with every attack of `study`; write `out/attacks/<name>/` and return the results.

    Existing results are written again. Intervals are computed from that many `resamples`.
    """
    answers = {name: answers_of(study, folder, name) for name in study.finetunings}
    return {
        name: assess_attack(study, finetuning, plugin, answers[finetuning], out / "attacks" / name, work, resamples)
        for name, (finetuning, plugin) in planned(study).items()
    }


def assess_attack(
    study: Study,
    finetuning: str,
    plugin: Plugin,
    answers: list[ModelAnswers],
    place: Path,
    work: Work,
    resamples: int = 1000,
) -> AttackResult:
    """Attack the models of one `finetuning` by their `answers`; write the result into the folder `place`."""
    began = time.monotonic()
    attack: PretrainingAttack = plugin.built("pretraining_attacks")
    sees_pretrained = bool(getattr(attack, "sees_pretrained", False))
    found = attack_models(study, answers, attack, work)
    evaluation = evaluate(
        found.scores.numpy(),
        found.member.numpy(),
        groups=found.point.numpy(),
        crossed=found.victim.numpy(),
        resamples=resamples,
    )
    settings = {
        "finetuning": finetuning,
        "moves": study.finetunings[finetuning].moves,
        "models": study.models,
        "shadows": study.shadows or study.models - 1,
    }
    result = AttackResult(
        attack={**plugin.resolved("pretraining_attacks"), **settings},
        asks="start",
        knows="the start's answers, own examples" if sees_pretrained else "answers, own examples",
        ceiling=sees_pretrained,
        seconds=round(time.monotonic() - began, 3),
        evaluation=evaluation,
        released=_released(study, finetuning, answers),
    )
    place.mkdir(parents=True, exist_ok=True)
    columns = {"victim": found.victim, "example": found.point, "member": found.member, "score": found.scores}
    write_columns(place / "scores.parquet", columns)
    write_json(place / "attack.json", result)
    return result


def ask_victim(study: Study, query: Query) -> Victim:
    """Ask a model that somebody else released about the points of `study`, once, within its budget and rate.

    Raises `ValueError` where no point has all its answers.
    """
    pool, chosen, ways = pool_of(study), points(study), downstream_of(study).ways
    asked = queries_about(pool.inputs[chosen], study)
    found = ask(metered(query, study), asked.flatten(0, 1), ways)
    answered = found.answered.reshape(asked.shape[:2]).all(dim=1)
    if not bool(answered.any()):
        raise ValueError(f"no point has all its answers; {found.complaint}")
    probabilities = found.probabilities.reshape(*asked.shape[:2], ways)[answered]
    return Victim(pool.places[chosen][answered], probabilities, answered, found.complaint)


def attack_victim(
    study: Study, folder: Path, finetuning: str, attack: PretrainingAttack, victim: Victim, work: Work
) -> Tensor:
    """Return the scores `(p,)` of the points that `victim` answered, with all models of `study` as its shadows.

    Raises `ValueError` for an attack that needs more than answers.
    """
    if getattr(attack, "sees_pretrained", False):
        raise ValueError(
            f"{type(attack).__name__} needs answers of the pretrained model itself, and has those of a released model"
        )
    answers = answers_of(study, folder, finetuning)
    shadows = ShadowAnswers(
        restricted(torch.stack([one.probabilities for one in answers])[:, victim.answered], study.queries.access),
        torch.stack([one.member for one in answers])[:, victim.answered],
    )
    return attack(shadows, restricted(victim.probabilities, study.queries.access), work)


def _released(study: Study, finetuning: str, answers: list[ModelAnswers]) -> ReleasedModels:
    """Return the mean accuracies of the models."""
    private = study.finetunings[finetuning].private
    promised = private is not None and private.epsilon is not None
    inside, outside = (fmean(one.start_accuracies[place] for one in answers) for place in (0, 1))
    return ReleasedModels(
        accuracy=over_seeds(
            [Estimate(value=one.accuracy, low=one.accuracy, high=one.accuracy) for one in answers],
            len(answers) * len(downstream_of(study).labels),
        ),
        start_accuracy=round(inside, 4),
        start_accuracy_outside=round(outside, 4),
        epsilon=round(mechanism(private).epsilon_after(1), 4) if private is not None and promised else None,
        delta=private.delta if private is not None and promised else None,
    )
