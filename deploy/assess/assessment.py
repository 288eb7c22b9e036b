"""One attack on one run: reading the record, attacking, comparing with the truth, writing the result."""

import hashlib
import inspect
import time
from pathlib import Path

import torch

from metaleak.attacks.attack import AsksMembership, Attack, Progress, Reconstructs
from metaleak.attacks.pretraining.personal_models import AsksReleasedModels
from metaleak.attacks.work import Map, Work, map_here
from metaleak.clients.device import torch_device
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.clients.randomness import derived_seed
from metaleak.deploy.assess.applicability import reason_against
from metaleak.deploy.assess.kept_parts import KeptParts, is_unfinished
from metaleak.deploy.assess.membership import Asked, ask_membership, ask_nearest
from metaleak.deploy.assess.observe import Attacked
from metaleak.deploy.assess.perceptual import perceptual_distance
from metaleak.deploy.assess.privacy import message_cost, with_audit
from metaleak.deploy.assess.reconstruction import Rebuilt, rebuild
from metaleak.deploy.assess.released_models import assess_released
from metaleak.deploy.assess.time_limit import within_hours
from metaleak.deploy.audits.run_audit import run_audit
from metaleak.deploy.config.experiment import Experiment, TargetSettings
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.results.json_file import write_json
from metaleak.deploy.results.schema import AttackResult
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.server import Record
from metaleak.server.record.whole_file import remove_parts, whole_of

_SCORES, _GALLERY, _RECONSTRUCTIONS = "scores.parquet", "gallery.safetensors", "reconstructions.safetensors"
_WRITTEN = (_SCORES, _GALLERY, _RECONSTRUCTIONS, "attack.json")


def assess(
    run: RunDirectory,
    experiment: Experiment,
    attack: Plugin,
    name: str | None = None,
    progress: Progress | None = None,
    spread: Map = map_here,
) -> AttackResult:
    """Attack the record of `run`, write the result into `attacks/<name>/`, and return it.

    An attack that asks for membership scores the experiment's targets; one that reconstructs rebuilds the sets of
    some learners, see `rebuild`; one that can do both does both. If it only reconstructs, the score of a target is
    its distance to the nearest reconstruction of its learner. The attack computes on `engine.device` if it can, see
    `Attack`. If its targets can be split, finished parts are kept, and the same call resumes it after an
    interruption.

    Args:
        run: The run to attack.
        experiment: The run's experiment, perhaps with other targets or another place of the data.
        attack: The attack and its settings.
        name: The name of the result; by default that of the attack.
        progress: Called with (done, total) while the attack runs.
        spread: Computes the independent parts of the attack, perhaps on other machines.

    Raises:
        ValueError: When the run has no such record, already has a result of this name, or when the attack would take
            more than `engine.longest_hours`.
        PrivacyViolation: When the scores prove a greater epsilon than is accounted for; the result is written.
    """
    # Two threads on small batched tensors were 15 times slower than one on a busy machine of two cores.
    torch.set_num_threads(1)
    keep_freed_memory()
    targets = experiment.targets
    made: Attack = attack.built("attacks")
    if reason := reason_against(experiment, attack):
        raise ValueError(reason)
    if isinstance(made, AsksReleasedModels):
        out = new_result_directory(run.path / "attacks", name or result_name(attack))
        return assess_released(run, experiment, attack, made, out, Work(0, progress, spread))
    asks_membership = isinstance(made, AsksMembership)
    if not (asks_membership or targets.learners):
        raise ValueError(f"targets.learners: must be at least 1 for {attack.name}, which only reconstructs, got 0")
    out = new_result_directory(run.path / "attacks", name or result_name(attack))
    attacked = _attacked(run, experiment)
    engine = experiment.engine
    device = torch_device(engine.device if getattr(made, "on_any_device", False) else "cpu")
    # Before the attack, so that an error here does not waste a long computation.
    audited = run_audit(experiment, made.asks)
    rebuilds = isinstance(made, Reconstructs) and targets.learners
    lpips = perceptual_distance(targets.lpips, attacked.federation.data) if rebuilds else None
    # Not the experiment's own seed, from which the truth could be rebuilt.
    seed = derived_seed(experiment.seed, "attack")
    advance = within_hours(progress, engine.longest_hours, _lowers(made))
    started = time.monotonic()
    asked: Asked | None = None
    rebuilt: Rebuilt | None = None
    settings = (attack.resolved("attacks"), targets.model_dump(mode="json"))
    decides = (experiment.simulation_key(), *settings, seed, _source_of(made))
    kept = KeptParts(out, repr(decides))
    with kept.told():
        if isinstance(made, AsksMembership):
            # Parameters sent in a late round depend on all earlier rounds, so all rounds up to it count.
            releases, whole = experiment.releases(attacked.rounds[-1]), experiment.releases()
            asked = ask_membership(made, attacked, targets, releases, whole, seed, device, kept, advance)
        if isinstance(made, Reconstructs) and targets.learners:
            rebuilt = rebuild(made, attacked, targets.learners, seed, device, advance, lpips)
            if asked is None:
                releases, whole = experiment.releases(attacked.rounds[rebuilt.rounds - 1]), experiment.releases()
                asked = ask_nearest(rebuilt, made.asks, attacked, targets, releases, whole)
    result = AttackResult(
        attack=attack.resolved("attacks"),
        targets=targets.model_dump(mode="json"),
        asks=made.asks,
        round=attacked.rounds[0],
        rounds=len(attacked.rounds) if asks_membership else rebuilt.rounds if rebuilt else 1,
        mean_of=attacked.mean_of,
        knows=", ".join(sorted(made.requires)) or "nothing",
        seconds=round(time.monotonic() - started, 3),
        evaluation=asked.evaluation if asked else None,
        privacy=with_audit(asked.privacy, audited) if asked else None,
        cost=message_cost(attacked.federation),
        statistics=asked.statistics if asked else {},
        by_nearest=not asks_membership,
        measured=rebuilt.measures if rebuilt else (),
    )
    out.mkdir(parents=True, exist_ok=True)
    remove_parts(out, _WRITTEN)
    if asked:
        asked.write(out / _SCORES, out / _GALLERY, attacked)
    if rebuilt:
        rebuilt.write(out / _RECONSTRUCTIONS)
    # Written last: an attack without it was not finished.
    write_json(out / "attack.json", result)
    kept.forget()
    if result.privacy:
        result.privacy.check()
    return result


def _source_of(attack: Attack) -> str:
    """Return a hash of the module that defines the attack, so that parts of an earlier version are not reused."""
    try:
        source = inspect.getsource(inspect.getmodule(type(attack)) or type(attack))
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()


def result_name(attack: Plugin) -> str:
    """Return the default name of an attack's results."""
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
    """Return in words the settings that can be lowered to shorten the attack."""
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
    return whole_of(name) in _WRITTEN or name in _WRITTEN[:-1] or is_unfinished(name)


def _attacked(run: RunDirectory, experiment: Experiment) -> Attacked:
    record = Record(run.record)
    rounds = _rounds(record, experiment.targets)
    learners = {learner for round in rounds for learner in record.mean_of(round) or record.learners(round)}
    return Attacked(record, rounds, sorted(learners), experiment.federation())


def _rounds(record: Record, targets: TargetSettings) -> list[int]:
    """Return the rounds that are attacked together: the chosen one and those after it, or before the last."""
    rounds = record.rounds
    if not rounds:
        raise ValueError(f"{record.path}: no reply was recorded")
    if targets.round == "last":
        return rounds[-targets.rounds :]
    first = rounds[0] if targets.round == "first" else targets.round
    # If the first round does not exist, the record reports it.
    return [first, *(round for round in rounds if round > first)][: targets.rounds]
