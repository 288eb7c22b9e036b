"""One attack on the record of a Flower app that is not metaleak's own."""

import csv
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from metaleak.attacks.attack import Answers, AsksMembership, Progress, Reconstructs, Targets
from metaleak.attacks.evaluation.membership import Evaluation, evaluate
from metaleak.attacks.foreign_app import observed_app
from metaleak.attacks.nearest_reconstruction import answers_by_nearest
from metaleak.attacks.observation import Observation, Update
from metaleak.attacks.refusal import refusal
from metaleak.attacks.threat_model import Capability, ThreatModel
from metaleak.clients.datasets import LabeledExamples
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.deploy.assess.assessment import new_result_directory, result_name
from metaleak.deploy.config.app import App
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.results.arrays import write_columns
from metaleak.deploy.results.json_file import write_json
from metaleak.deploy.results.schema import AttackResult
from metaleak.server.record.reader import Record

MAX_CANDIDATES = 10_000_000
"""The most questions of one attack."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Questions about an app's learners: `example (T,)`, as places in the data, and `learner (T,)`.

    `member (T,)` is bool, or `None` where membership is not known.
    """

    example: Tensor
    learner: Tensor
    member: Tensor | None


def assess_app(
    record: Path, app: App, attack: Plugin, name: str | None = None, progress: Progress | None = None
) -> tuple[Path, AttackResult]:
    """Attack a round of the `record` of a Flower app, and write the result into `attacks/<name>/` beside the record.

    >>> folder, found = assess_app(Path("runs/mine/record"), read_app(Path("app.yaml")), Plugin(name="span"))
    ... # doctest: +SKIP

    Args:
        record: The record of the app.
        app: What the adversary knows of the app.
        attack: The attack and its settings.
        name: The name of the result; by default that of the attack.
        progress: Called with (done, total) while the attack runs.

    Returns:
        The folder of the result, and the result. It has an evaluation only where the candidates' file states who is a
        member.

    Raises:
        ValueError: When the attack cannot be made, or when the statements of `app` do not fit the record.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    made = attack.built("attacks")
    if not isinstance(made, AsksMembership | Reconstructs):
        raise ValueError(f"{attack.name} neither asks about membership of learners' examples nor reconstructs these")
    opened = Record(record)
    round = app.round or next(iter(opened.rounds), None)
    if round is None:
        raise ValueError(f"{record}: no reply was recorded")
    update = Update.of_record(opened, round, holds=app.holds)
    data: LabeledExamples = app.data.built("datasets").load()
    candidates = _candidates(app, data, update)
    own = None if app.own is None else _own(app.own, data, candidates)
    module = _module(app)
    normalize = app.normalize
    observation = observed_app(
        update,
        module,
        app.rule.built("rules"),
        app.examples or _typical_examples(opened, round),
        data.input_shape,
        None if own is None else (data.inputs(own), data.labels[own]),
        () if normalize is None else normalize.mean,
        () if normalize is None else normalize.std,
    )
    known: frozenset[Capability] = frozenset({"labels", "classes", "defenses"})
    threat_model = ThreatModel(knows=known | {"own examples"} if own is not None else known)
    if reason := refusal(made, observation.model, (), threat_model):
        raise ValueError(f"{attack.name} {reason}")
    out = new_result_directory(record.parent / "attacks", name or result_name(attack))
    row_of = {learner: row for row, learner in enumerate(update.learners)}
    targets = Targets(
        data.inputs(candidates.example),
        torch.tensor([row_of[learner] for learner in candidates.learner.tolist()]),
        data.labels[candidates.example],
    )
    if int(targets.positions.max()) >= observation.ways:
        raise ValueError(
            f"the data have labels up to {int(targets.positions.max())}, the model {observation.ways} classes"
        )
    started = time.monotonic()
    answers = _answers(made, observation, targets, app.seed, progress)
    result = AttackResult(
        attack=attack.resolved("attacks"),
        asks=made.asks,
        round=round,
        rounds=1,
        knows=", ".join(sorted(made.requires)) or "nothing",
        seconds=math.floor(1000 * (time.monotonic() - started)) / 1000,
        evaluation=_evaluation(candidates, answers.scores),
        by_nearest=not isinstance(made, AsksMembership),
    )
    out.mkdir(parents=True, exist_ok=True)
    _write_scores(out / "scores.parquet", candidates, answers, round)
    write_json(out / "attack.json", result)
    return out, result


def _answers(
    attack: AsksMembership | Reconstructs,
    observation: Observation,
    targets: Targets,
    seed: int,
    progress: Progress | None,
) -> Answers:
    if isinstance(attack, AsksMembership):
        return attack(observation, targets, seed, progress)
    return answers_by_nearest(attack.reconstruct(observation, seed, progress), targets)


def _module(app: App) -> nn.Module:
    module = getattr(app.model.built("models"), "module", None)
    if not isinstance(module, nn.Module):
        raise ValueError(f"model.name: {app.model.name} must make the app's own torch.nn.Module")
    return module


def _typical_examples(record: Record, round: int) -> int:
    """Return the median of the numbers of examples that the replies of `round` state."""
    stated = [said.get("num-examples", said.get("num_examples")) for said in record.metrics(round).values()]
    numbers = [value for value in stated if isinstance(value, int | float) and value >= 1]
    if not numbers:
        raise ValueError(
            "no reply states num-examples: the app's file must state examples, the number of examples of a learner"
        )
    return int(median(numbers))


def _candidates(app: App, data: LabeledExamples, update: Update) -> Candidates:
    if app.candidates is None:
        count, learners = len(data.labels), len(update.learners)
        if count * learners > MAX_CANDIDATES:
            raise ValueError(
                f"{count} examples for each of {learners} learners are more than {MAX_CANDIDATES} questions: list "
                "the candidates in a file"
            )
        return Candidates(
            torch.arange(count).repeat(learners), torch.tensor(update.learners).repeat_interleave(count), None
        )
    with _naming(app.candidates):
        columns = _columns(app.candidates, data, ("example", "learner"), ("member",))
        example, learner = columns["example"], columns["learner"]
        strangers = sorted(set(learner.tolist()) - set(update.learners))
        if strangers:
            there = ", ".join(str(one) for one in update.learners[:10])
            raise ValueError(f"learner {strangers[0]} is not one of those that answered: {there}")
        member = columns.get("member")
        if member is not None and not set(member.tolist()) <= {0, 1}:
            raise ValueError("member must be 1 or 0")
        return Candidates(example, learner, None if member is None else member == 1)


def _own(path: Path, data: LabeledExamples, candidates: Candidates) -> Tensor:
    """Return the places of the adversary's own images, none of which may be a candidate."""
    with _naming(path):
        own = _columns(path, data, ("example",))["example"]
        both = set(own.tolist()) & set(candidates.example.tolist())
        if both:
            raise ValueError(f"example {min(both)} is a candidate too: the adversary's own images are no learner's")
        return own


def _columns(
    path: Path, data: LabeledExamples, needed: tuple[str, ...], also: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return the columns of a CSV file by name: numbers, and an `example` by its place in the data or its name."""
    places = {name: place for place, name in enumerate(data.names)}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = tuple(reader.fieldnames or ())
        if not set(needed) <= set(names) <= {*needed, *also}:
            wanted = ", ".join([*needed, *(f"{name} (if known)" for name in also)])
            raise ValueError(f"must have the columns {wanted}, has {', '.join(names) or 'none'}")
        rows: dict[str, list[int]] = {name: [] for name in names}
        for line in reader:
            if len(rows[names[0]]) == MAX_CANDIDATES:
                raise ValueError(f"more than {MAX_CANDIDATES} rows")
            for name in names:
                value = (line[name] or "").strip()
                known = places.get(value) if name == "example" else None
                if known is None and (not value.isdecimal() or len(value) > 18):
                    or_name = " or the name of an example" if name == "example" and places else ""
                    raise ValueError(f"line {reader.line_num}: {name} must be a number{or_name}, got {value[:40]!r}")
                rows[name].append(int(value) if known is None else known)
    if not rows[names[0]]:
        raise ValueError("has no rows")
    found = {name: torch.tensor(values) for name, values in rows.items()}
    examples = found["example"]
    if not 0 <= int(examples.min()) <= int(examples.max()) < len(data.labels):
        raise ValueError(f"an example must be a place in the data, 0 to {len(data.labels) - 1}")
    return found


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Prefix errors with the file's path."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from None


def _evaluation(candidates: Candidates, scores: Tensor) -> Evaluation | None:
    """Return how well the scores tell members from non-members; intervals resample learners if there are several."""
    if candidates.member is None or candidates.member.all() or not candidates.member.any():
        return None
    learners = candidates.learner.numpy()
    return evaluate(scores.numpy(), candidates.member.numpy(), groups=learners)


def _write_scores(path: Path, candidates: Candidates, answers: Answers, round: int) -> None:
    columns = {
        "learner": candidates.learner,
        "round": torch.full_like(candidates.learner, round),
        "example": candidates.example,
        **({} if candidates.member is None else {"member": candidates.member}),
        "score": answers.scores,
        **answers.statistics,
    }
    write_columns(path, columns)
