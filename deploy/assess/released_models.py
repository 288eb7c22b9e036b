"""Attacks on personal models that learners publish after a run; no record is read."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.pretraining.evidence import ShadowAnswers
from metaleak.attacks.pretraining.personal_models import AsksReleasedModels, answers_of_all
from metaleak.attacks.pretraining.query import Query
from metaleak.attacks.work import Work
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.federation import Federation
from metaleak.clients.randomness import derived_seed, keyed_generator
from metaleak.clients.sharing import without_clip
from metaleak.deploy.assess.truth import used_in_training
from metaleak.deploy.config.experiment import EvaluationSettings, Experiment, RecordSettings
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.pretraining.finetuning import ReleasedModel
from metaleak.deploy.results.arrays import write_columns
from metaleak.deploy.results.json_file import write_json
from metaleak.deploy.results.schema import AttackResult
from metaleak.deploy.simulate.launch import simulate_here
from metaleak.deploy.simulate.run_directory import RunDirectory, read_parameters

_LOG = logging.getLogger("metaleak")


@dataclass(frozen=True, eq=False)
class AskedPoints:
    """The points that are asked about: `examples (P,)` in the data set, and whether the training used them."""

    examples: Tensor
    member: Tensor


@dataclass(frozen=True)
class ShadowRun:
    """A federation that the adversary simulates into `folder`: the run's experiment with another seed."""

    experiment: Experiment
    folder: Path


def assess_released(
    run: RunDirectory, experiment: Experiment, plugin: Plugin, attack: AsksReleasedModels, out: Path, work: Work
) -> AttackResult:
    """Ask the personal models of some learners of `run` about images of the others, and write the result to `out`.

    Members are images of other learners that the training used (see `used_in_training`). Non-members are images of
    the same classes that no learner holds. The adversary's federations are simulated once, inside the run's
    directory, and kept. Intervals are over points, for this one initialization. Raises `ValueError` for a run that is
    not done, and for defenses of the inner loop.
    """
    began = time.monotonic()
    if not run.done:
        raise ValueError(f"{run.path}: the simulation is not done; a released model needs its final parameters")
    federation = experiment.federation()
    _check_defenses(federation)
    parameters = _trained(run, federation)
    learners = _publishing(federation, attack.releases)
    classes = {learner: _own_classes(federation, learner) for learner in learners}
    asked = _points(federation, learners, experiment)
    inputs = federation.examples().inputs(asked.examples)
    victim, complaint = answers_of_all(
        {learner: _published(federation, parameters, learner) for learner in learners}, inputs, federation.task.ways
    )
    shadows = _shadows(run, experiment, attack.shadows)
    missing = [one for one in shadows if not RunDirectory(one.folder).done]
    work.report(len(shadows) - len(missing), len(shadows))
    for done, _ in enumerate(work.map(simulated, missing), start=1):
        work.report(len(shadows) - len(missing) + done, len(shadows))
    answers, members = [], []
    for shadow in shadows:
        own = shadow.experiment.federation()
        start = _trained(RunDirectory.open(shadow.folder), own)
        queries: dict[int, Query] = {
            learner: _adapted_anew(own, start, classes[learner], asked.examples, learner) for learner in learners
        }
        answers.append(answers_of_all(queries, inputs, own.task.ways)[0])
        members.append(used_in_training(shadow.experiment)[asked.examples])
    kept = ~victim.flatten(1).isnan().any(dim=1)
    evidence = ShadowAnswers(torch.stack(answers)[:, kept], torch.stack(members)[:, kept])
    scores = attack.scores(evidence, victim[kept], Work(derived_seed(experiment.seed, "attack"), None, work.map))
    if complaint:
        _LOG.warning("%s", complaint)
    result = AttackResult(
        attack=plugin.resolved("attacks"),
        targets=experiment.targets.model_dump(mode="json"),
        asks="start",
        knows=", ".join(sorted(attack.requires)),
        seconds=round(time.monotonic() - began, 3),
        evaluation=evaluate(scores.numpy(), asked.member[kept].numpy()),
    )
    out.mkdir(parents=True, exist_ok=True)
    columns = {"example": asked.examples[kept], "member": asked.member[kept], "score": scores}
    write_columns(out / "scores.parquet", columns)
    write_json(out / "attack.json", result)
    return result


def simulated(shadow: ShadowRun) -> str:
    """Simulate one of the adversary's federations, or what is missing of it, in this process."""
    return str(simulate_here(shadow.experiment, shadow.folder).path)


def held_by_any(federation: Federation) -> Tensor:
    """Return which examples of the data set any learner may draw into its sets, booleans `(N,)`."""
    inside = torch.zeros(len(federation.examples().labels), dtype=torch.bool)
    for shard in federation.split().shards:
        inside[shard.examples.flatten()] = True
    return inside


def _shadows(run: RunDirectory, experiment: Experiment, count: int) -> list[ShadowRun]:
    """Return the adversary's federations, which are not recorded and whose accuracy is measured only roughly."""
    found = []
    for number in range(count):
        seed = derived_seed(experiment.seed, "shadow federation", number) % 2**31
        own = experiment.model_copy(
            update={
                "seed": seed,
                "attacks": (),
                "record": RecordSettings(rounds=0),
                "evaluation": EvaluationSettings(every=experiment.server.rounds, tasks=2, queries=1),
            }
        )
        found.append(ShadowRun(own, run.path / "shadows" / f"{own.simulation_key()}"))
    return found


def _trained(run: RunDirectory, federation: Federation) -> Parameters:
    """Return all parameters of the trained model; the server keeps only the shared ones."""
    shared = federation.shared(federation.initial_parameters())
    return without_clip(federation.whole(read_parameters(run.path / "parameters.safetensors", shared)))


def _check_defenses(federation: Federation) -> None:
    for number, defense in enumerate(federation.defenses):
        if defense.place in ("inner", "example"):
            raise ValueError(
                f"defenses.{number}: one of the place {defense.place!r} changes how a personal model is adapted, "
                "which the adversary's are not; the places support, query, shared and aggregate are allowed"
            )


def _publishing(federation: Federation, releases: int) -> list[int]:
    """Return the learners who publish their personal models."""
    count = federation.partition.learners
    if releases >= count:
        raise ValueError(f"releases: must be below the {count} learners, so that there are others, got {releases}")
    order = torch.randperm(count, generator=keyed_generator(federation.seed, "publishing"))
    return sorted(order[:releases].tolist())


def _own_classes(federation: Federation, learner: int) -> tuple[int, ...]:
    return tuple(federation.learner(learner).drawn(1).classes.tolist())


def _published(federation: Federation, parameters: Parameters, learner: int) -> ReleasedModel:
    """Return a learner's personal model: adapted to the support set of its first round, after its defenses."""
    personal = federation.rule.adapt(federation.model, parameters, federation.learner(learner).episode(1))
    return ReleasedModel(federation.model, {name: value.detach() for name, value in personal.items()})


def _adapted_anew(
    federation: Federation, parameters: Parameters, classes: tuple[int, ...], asked: Tensor, learner: int
) -> ReleasedModel:
    """Return the personal model of a new learner of these classes, whose images nobody asks about.

    Raises `ValueError` where a class has too few images that are neither held nor asked about.
    """
    data, shots = federation.examples(), federation.task.shots
    free = ~held_by_any(federation)
    free[asked] = False
    support = []
    for label in classes:
        own = torch.nonzero(free & (data.labels == label)).flatten()
        if len(own) < shots:
            raise ValueError(
                f"class {label} has {len(own)} images that are neither held nor asked about, a new learner needs "
                f"{shots}: lower targets.members and targets.non_members, or raise partition.non_members"
            )
        generator = keyed_generator(federation.seed, "new learner", learner, label)
        support.append(own[torch.randperm(len(own), generator=generator)[:shots]])
    inputs, labels = data.inputs(torch.cat(support)), torch.arange(len(classes)).repeat_interleave(shots)
    personal = federation.rule.adapt(federation.model, parameters, Episode(inputs, labels, inputs, labels))
    return ReleasedModel(federation.model, {name: value.detach() for name, value in personal.items()})


def _points(federation: Federation, publishing: list[int], experiment: Experiment) -> AskedPoints:
    """Return at most the targets' number of images that others brought to the training, and that no learner holds."""
    labels = federation.examples().labels
    inside = used_in_training(experiment)
    own = torch.zeros_like(inside)
    for learner in publishing:
        own[federation.split().shards[learner].examples.flatten()] = True
    generator = keyed_generator(federation.seed, "points")
    held = _some(torch.nonzero(inside & ~own).flatten(), experiment.targets.members, generator)
    if not len(held):
        raise ValueError("no image of a learner that publishes nothing was used; lower releases, or train on more")
    classes = torch.zeros(int(labels.max()) + 1, dtype=torch.bool)
    classes[labels[held]] = True
    free = federation.split().non_members
    others = _some(free[classes[labels[free]]], experiment.targets.non_members, generator)
    if not len(others):
        raise ValueError("no learner's class has an image that no learner holds; raise partition.non_members")
    examples = torch.cat([held, others])
    member = torch.arange(len(examples)) < len(held)
    order = torch.randperm(len(examples), generator=generator)
    return AskedPoints(examples[order], member[order])


def _some(places: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return places[torch.randperm(len(places), generator=generator)[:count]]
