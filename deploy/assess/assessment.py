"""One attack on one run: read the record, ask, compare with the truth, write what was found."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save

from metaleak.attacks.attack import Answers, Attack, Divisible, Progress, joined
from metaleak.attacks.evaluation.membership import Evaluation, evaluate
from metaleak.clients.device import torch_device
from metaleak.clients.federation import Federation
from metaleak.clients.randomness import derived_seed
from metaleak.deploy.assess.applicability import reason_against
from metaleak.deploy.assess.kept_parts import KeptParts, is_unfinished
from metaleak.deploy.assess.observe import observe
from metaleak.deploy.assess.privacy import measured_privacy, message_cost
from metaleak.deploy.assess.time_limit import Advance, within_hours
from metaleak.deploy.assess.truth import Truth, ask, inputs
from metaleak.deploy.config.experiment import Experiment, TargetSettings
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.errors import Interrupted
from metaleak.deploy.results.arrays import write_columns
from metaleak.deploy.results.json_file import write_json
from metaleak.deploy.results.schema import AttackResult
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.server import Record
from metaleak.server.record.whole_file import remove_parts, whole_of, write_whole

_SHOWN = 8
_WRITTEN = ("scores.parquet", "gallery.safetensors", "attack.json")


def assess(
    run: RunDirectory,
    experiment: Experiment,
    attack: Plugin,
    name: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run `attack` on what the server recorded in `run` and write `attacks/<name>/`; return the evaluation.

    Beside it stands the AUC of every statistic by itself, taking small values for "member".

    What is done of an attack is kept part by part where its targets can be parted, so that the same call goes on
    after an interruption. It computes on `engine.device` where it can, see `Attack`.

    `experiment` is the run's, perhaps with other targets or another place of the data; `name` defaults to that of the
    attack. Raises `ValueError` when the run has no such record, has an attack of this name already, or when the
    attack would take more than `engine.longest_hours`, and `PrivacyViolation`, with the result written, when the
    scores prove a greater epsilon than is accounted for.
    """
    # Two threads on small batched tensors were 15 times slower than one on a busy machine of two cores.
    torch.set_num_threads(1)
    targets = experiment.targets
    made: Attack = attack.built("attacks")
    if reason := reason_against(experiment, attack):
        raise ValueError(reason)
    out = new_result_directory(run.path / "attacks", name or result_name(attack))
    federation = experiment.federation()
    record = Record(run.record)
    recorded = _rounds(record, targets)
    learners = _learners(record, recorded)
    truth = ask(federation, learners, recorded[0], made.asks, targets)
    # Not the experiment's own seed, from which the truth could be rebuilt.
    attack_seed = derived_seed(experiment.seed, "attack")
    started = time.monotonic()
    decides = (experiment.simulation_key(), attack.resolved("attacks"), targets.model_dump(mode="json"), attack_seed)
    kept = KeptParts(out, repr(decides))
    engine = experiment.engine
    device = torch_device(engine.device if getattr(made, "on_any_device", False) else "cpu")
    told = within_hours(progress, engine.longest_hours, _lowers(made))
    try:
        answers = _answers(made, record, recorded, learners, federation, truth, attack_seed, told, kept, device)
    except Interrupted:
        if not kept.count:
            raise
        raise Interrupted(
            f"interrupted; {kept.count} parts of the attack are kept, the same command goes on from there"
        ) from None
    seconds = time.monotonic() - started
    evaluation = evaluate(answers.scores.numpy(), truth.member.numpy(), groups=_groups(truth))
    # What the server sent in a late round tells of every earlier one, so all up to it count.
    releases, together = experiment.releases(recorded[-1]), any(record.mean_of(round) for round in recorded)
    privacy = measured_privacy(federation, releases, truth, answers.scores, together)
    out.mkdir(parents=True, exist_ok=True)
    remove_parts(out, _WRITTEN)
    _write_scores(out / "scores.parquet", truth, answers, recorded[0])
    if answers.reconstructions is not None:
        _write_gallery(out / "gallery.safetensors", federation, truth, answers, answers.reconstructions)
    result = AttackResult(
        attack=attack.resolved("attacks"),
        targets=targets.model_dump(mode="json"),
        asks=made.asks,
        round=recorded[0],
        rounds=len(recorded),
        knows=", ".join(sorted(made.requires)) or "nothing",
        seconds=round(seconds, 3),
        evaluation=evaluation,
        privacy=privacy,
        cost=message_cost(federation),
        statistics={
            name: evaluate(-values.numpy(), truth.member.numpy(), groups=_groups(truth)).auc
            for name, values in answers.statistics.items()
        },
    )
    # Written last: an attack without it was not finished.
    write_json(out / "attack.json", result)
    kept.forget()
    privacy.check()
    return evaluation


def _answers(
    attack: Attack,
    record: Record,
    rounds: list[int],
    learners: list[int],
    federation: Federation,
    truth: Truth,
    seed: int,
    advance: Advance,
    kept: KeptParts,
    device: torch.device,
) -> Answers:
    """Return the attack's answers over `rounds`: scores add up, the rest is the last round's."""
    asked = truth.targets(federation, learners).to(device)
    whole = torch.arange(len(asked.rows), device=device)
    total = torch.zeros(len(asked.rows), dtype=torch.float64)
    for number, round in enumerate(rounds):
        observation = observe(record, round, learners, federation, attack, truth).to(device)
        # Nothing is kept of an attack whose targets cannot be parted: there is one part, and it has ended.
        parts = attack.parts(observation, asked) if isinstance(attack, Divisible) else ()
        found, before = [], number * len(whole)
        for places in parts or [whole]:

            def tell(done: int, of: int, before: int = before, size: int = len(places)) -> None:
                advance(before + size * done / max(1, of), len(rounds) * len(whole))

            ask = partial(attack, observation, asked.at(places), seed, tell)
            found.append(kept.answers(round, places, ask) if parts else ask().to("cpu"))
            before += len(places)
        answers = joined([places.cpu() for places in parts], found) if parts else found[0]
        total += answers.scores
    return replace(answers, scores=answers.scores if len(rounds) == 1 else total)


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


def _lowers(attack: Attack) -> str:
    """Return the settings that make the attack shorter, in words."""
    own = [f"the attack's {name}" for name in ("iterations", "fit") if hasattr(attack, name)]
    return ", ".join(["targets.members", "targets.non_members", *own])


def new_result_directory(attacks: Path, name: str) -> Path:
    """Return the folder in `attacks` for results called `name`; raises `ValueError` when it is taken."""
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise ValueError(f"an attack's results cannot be called {name!r}: no slashes, no dot in front")
    if attacks.is_symlink():
        raise ValueError(f"{attacks}: a link; results stay in the run's directory")
    out = attacks / name
    # Parts without attack.json were left by an attack that did not finish, and are written over.
    there = [file.name for file in out.iterdir()] if out.is_dir() else []
    if out.is_symlink() or (out.exists() and not (out.is_dir() and all(_unfinished(name) for name in there))):
        raise ValueError(f"{out}: exists already; choose another name with --as")
    return out


def _unfinished(name: str) -> bool:
    return whole_of(name) in _WRITTEN or name in _WRITTEN[:2] or is_unfinished(name)


def _rounds(record: Record, targets: TargetSettings) -> list[int]:
    """Return the rounds that are attacked together: the chosen one and those after it, or before the last."""
    rounds = record.rounds
    if not rounds:
        raise ValueError(f"{record.path}: no reply was recorded")
    if targets.round == "last":
        return rounds[-targets.rounds :]
    first = rounds[0] if targets.round == "first" else targets.round
    # A first round that is not there is the record's to name.
    return [first, *(round for round in rounds if round > first)][: targets.rounds]


def _learners(record: Record, rounds: list[int]) -> list[int]:
    """Return the learners that answered in every one of `rounds`, ascending; raises `ValueError` when none did.

    Of a round of which the server saw the mean alone: those whose mean it is.
    """
    present = [set(record.mean_of(round) or record.learners(round)) for round in rounds]
    learners = sorted(set.intersection(*present))
    if not learners:
        raise ValueError(f"{record.path}: no learner answered in all of the rounds {rounds[0]} to {rounds[-1]}")
    return learners


def _groups(truth: Truth) -> list[int] | None:
    """Return the learner of each target, or `None` when there is but one learner to resample."""
    learners = truth.learner.tolist()
    return learners if len(set(learners)) > 1 else None


def _write_scores(path: Path, truth: Truth, answers: Answers, round: int) -> None:
    columns = {
        "learner": truth.learner,
        "round": torch.full_like(truth.learner, round),
        "position": truth.position,
        "example": truth.example,
        "label": truth.label,
        "member": truth.member,
        "score": answers.scores,
        **answers.statistics,
    }
    write_columns(path, columns)


def _write_gallery(
    path: Path, federation: Federation, truth: Truth, answers: Answers, reconstructions: torch.Tensor
) -> None:
    members = torch.nonzero(truth.member).flatten()[:_SHOWN]
    non_members = torch.nonzero(~truth.member).flatten()[:_SHOWN]
    shown = torch.cat([members, non_members])
    gallery = {
        "prior": inputs(federation, truth.example[shown]),
        "reconstruction": reconstructions[shown].to(torch.float32).contiguous(),
        "truth": inputs(federation, truth.held[shown]),
        "member": truth.member[shown].to(torch.uint8),
        "score": answers.scores[shown].to(torch.float32),
    }
    write_whole(path, save(gallery))
