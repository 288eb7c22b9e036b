"""One attack on one run: read the record, ask, compare with the truth, write what was found."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from metaleak.attacks.evaluation import Evaluation, evaluate
from metaleak.attacks.observation import Answers, Attack, Observation, Progress
from metaleak.clients.federation import Federation
from metaleak.clients.randomness import derived_seed
from metaleak.deploy.experiment import Experiment, TargetSettings
from metaleak.deploy.plugins import Plugin
from metaleak.deploy.run_directory import RunDirectory, write_text
from metaleak.deploy.truth import Truth, ask, held_images, pixels
from metaleak.server import Record
from metaleak.server.whole_file import write_whole

_SHOWN = 8


def assess(
    run: RunDirectory,
    experiment: Experiment,
    attack: Plugin,
    name: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run `attack` on what the server recorded in `run` and write `attacks/<name>/`; return the evaluation.

    Beside it stands the AUC of every statistic by itself, taking small values for "member".

    `experiment` is the run's, perhaps with other targets or another place of the data; `name` defaults to that of the
    attack. Raises `ValueError` when the run has no such record, or has an attack of this name already.
    """
    # Two threads on small batched tensors were 15 times slower than one on a busy machine of two cores.
    torch.set_num_threads(1)
    targets = experiment.targets
    made: Attack = attack.build("attacks")
    out = _new_directory(run.path / "attacks", name or result_name(attack))
    federation = experiment.federation()
    record = Record(run.record)
    recorded = _round(record, targets)
    learners, observation = observe(record, recorded, federation, made)
    truth = ask(federation, learners, recorded, made.asks, targets)
    # Not the experiment's own seed, from which the truth could be rebuilt.
    attack_seed = derived_seed(experiment.seed, "attack")
    started = time.monotonic()
    answers = made(observation, truth.targets(federation, learners), attack_seed, progress)
    seconds = time.monotonic() - started
    evaluation = evaluate(answers.scores.numpy(), truth.member.numpy(), groups=_groups(truth))
    out.mkdir(parents=True, exist_ok=True)
    _write_scores(out / "scores.parquet", truth, answers, recorded)
    if answers.reconstructions is not None:
        _write_gallery(out / "gallery.safetensors", federation, truth, answers, answers.reconstructions)
    described = {
        "attack": attack.resolved("attacks"),
        "targets": targets.model_dump(mode="json"),
        "asks": made.asks,
        "round": recorded,
        "knows": _knows(made),
        "seconds": round(seconds, 3),
        "evaluation": evaluation.model_dump(mode="json"),
        "statistics": {
            name: evaluate(-values.numpy(), truth.member.numpy(), groups=_groups(truth)).auc.model_dump(mode="json")
            for name, values in answers.statistics.items()
        },
    }
    # Written last: an attack without it was not finished.
    write_text(out / "attack.json", json.dumps(described, indent=2) + "\n")
    return evaluation


def observe(record: Record, round: int, federation: Federation, attack: Attack) -> tuple[list[int], Observation]:
    """Return the learners of `round` and what the adversary holds about them, row for row.

    The adversary sent the parameters and knows the model, the rule and the task's shape. Only an attack that declares
    `knows: other` is given the set that it does not ask about.
    """
    learners, gradients = record.gradients(round)
    other = _knows(attack) == "other"
    task = federation.task
    return learners, Observation(
        model=federation.model,
        rule=federation.rule,
        parameters={name: torch.from_numpy(value) for name, value in record.sent(round).items()},
        gradients={name: torch.from_numpy(value) for name, value in gradients.items()},
        ways=task.ways,
        shots=task.shots,
        queries=task.queries,
        known_support=held_images(federation, learners, round, "support")
        if other and attack.asks == "query"
        else None,
        known_query=held_images(federation, learners, round, "query") if other and attack.asks == "support" else None,
    )


def result_name(attack: Plugin) -> str:
    """Return the name under which an attack's results stand when nobody gives another."""
    return attack.name.rpartition(":")[2]


def planned_attacks(experiment: Experiment) -> dict[str, Plugin]:
    """Return the experiment's attacks by the name of their results, numbered where a name comes twice."""
    planned: dict[str, Plugin] = {}
    for attack in experiment.attacks:
        base = result_name(attack)
        name, number = base, 1
        while name in planned:
            number += 1
            name = f"{base}-{number}"
        planned[name] = attack
    return planned


def _new_directory(attacks: Path, name: str) -> Path:
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise ValueError(f"an attack's results cannot be called {name!r}: no slashes, no dot in front")
    out = attacks / name
    # Parts without attack.json were left by an attack that did not finish, and are written over.
    unfinished = {"scores.parquet", "gallery.safetensors"}
    if out.is_symlink() or (out.exists() and not {part.name for part in out.iterdir()} <= unfinished):
        raise ValueError(f"{out}: exists already; choose another name with --as")
    return out


def _round(record: Record, targets: TargetSettings) -> int:
    rounds = record.rounds
    if not rounds:
        raise ValueError(f"{record.path}: no reply was recorded")
    if targets.round == "first":
        return rounds[0]
    if targets.round == "last":
        return rounds[-1]
    return targets.round


def _knows(attack: Attack) -> str:
    return str(getattr(attack, "knows", ""))


def _groups(truth: Truth) -> list[int] | None:
    """Return the learner of each target, or `None` when there is but one learner to resample."""
    learners = truth.learner.tolist()
    return learners if len(set(learners)) > 1 else None


def _write_scores(path: Path, truth: Truth, answers: Answers, round: int) -> None:
    columns = {
        "learner": truth.learner,
        "round": torch.full_like(truth.learner, round),
        "position": truth.position,
        "image": truth.image,
        "label": truth.label,
        "member": truth.member,
        "score": answers.scores,
        **answers.statistics,
    }
    table = pa.table({name: pa.array(values.numpy()) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_whole(path, sink.getvalue().to_pybytes())


def _write_gallery(
    path: Path, federation: Federation, truth: Truth, answers: Answers, reconstructions: torch.Tensor
) -> None:
    members = torch.nonzero(truth.member).flatten()[:_SHOWN]
    non_members = torch.nonzero(~truth.member).flatten()[:_SHOWN]
    shown = torch.cat([members, non_members])
    gallery = {
        "prior": pixels(federation, truth.image[shown]),
        "reconstruction": reconstructions[shown].to(torch.float32).contiguous(),
        "truth": pixels(federation, truth.held[shown]),
        "member": truth.member[shown].to(torch.uint8),
        "score": answers.scores[shown].to(torch.float32),
    }
    write_whole(path, save(gallery))
