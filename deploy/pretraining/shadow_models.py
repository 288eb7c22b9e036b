"""The models of a study: each is pretrained, finetuned and queried once, on Ray or in this process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metaleak.attacks.pretraining.query import Metered, Query, ask
from metaleak.attacks.pretraining.training import augmented, train
from metaleak.attacks.work import Map, Work, map_here
from metaleak.clients.device import torch_device
from metaleak.clients.episode import Parameters
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.clients.models import Model
from metaleak.clients.randomness import keyed_generator
from metaleak.deploy.engines.ray_map import ray_map
from metaleak.deploy.pretraining.examples import Scale, downstream_of, members, points, pool_of, scale_of
from metaleak.deploy.pretraining.finetuning import ReleasedModel, finetuned, with_statistics
from metaleak.deploy.pretraining.kept import Kept
from metaleak.deploy.pretraining.study import Study

_TOGETHER_ON_GPU = 64


@dataclass(frozen=True)
class ModelJob:
    """The models of these numbers, to be trained together and kept in `folder`."""

    study: Study
    models: tuple[int, ...]
    folder: Path


@dataclass(frozen=True, eq=False)
class ModelAnswers:
    """One model's answers `probabilities (P, A, K)` after finetuning, and the truth.

    `start (P, A, 1)` are the probabilities of the points' own labels before it; `member (P,)` booleans; `accuracy` is
    that on the downstream examples, `start_accuracies` those on what it was pretrained on and the rest of the pool.
    """

    probabilities: Tensor
    start: Tensor
    member: Tensor
    accuracy: float
    start_accuracies: tuple[float, float]


def missing_jobs(study: Study, folder: Path) -> list[ModelJob]:
    """Return the jobs for models that are missing: one model per job on CPUs, many together on a GPU."""
    kept = Kept(folder)
    missing = [
        model
        for model in range(study.models)
        if not all(kept.has(study.answers_key(model, name)) for name in study.finetunings)
    ]
    together = _TOGETHER_ON_GPU if torch_device(study.engine.device).type == "cuda" else 1
    return [
        ModelJob(study, tuple(missing[begin : begin + together]), folder)
        for begin in range(0, len(missing), together)
    ]


def make_models(study: Study, folder: Path, work: Work) -> int:
    """Train all models of `study` that are missing in `folder`; return how many were missing."""
    jobs = missing_jobs(study, folder)
    total = sum(len(job.models) for job in jobs)
    done = 0
    work.report(done, total)
    for made in work.map(make, jobs):
        done += made
        work.report(done, total)
    return total


@contextmanager
def map_of_models(study: Study, here: bool = False) -> Iterator[Map]:
    """Yield the map that runs jobs: on Ray, or, with `here` and on a GPU, in this process."""
    if here or torch_device(study.engine.device).type == "cuda":
        yield map_here
        return
    with ray_map(study.engine, "the same command goes on from here") as on_ray:
        yield on_ray


def answers_of(study: Study, folder: Path, finetuning: str) -> list[ModelAnswers]:
    """Return the answers of every model; raises `ValueError` if one is missing."""
    kept = Kept(folder)
    found = []
    for model in range(study.models):
        tensors = kept.read(study.answers_key(model, finetuning))
        if tensors is None:
            raise ValueError(f"{folder}: model {model} is missing or damaged; the same command makes it again")
        inside, outside = tensors["start_accuracies"].tolist()
        found.append(
            ModelAnswers(
                tensors["probabilities"],
                tensors["start"],
                tensors["member"].bool(),
                float(tensors["accuracy"]),
                (inside, outside),
            )
        )
    return found


def make(job: ModelJob) -> int:
    """Pretrain, finetune and query the models of a job, as far as they are missing; return how many there are."""
    torch.set_num_threads(1)
    keep_freed_memory()
    study, kept = job.study, Kept(job.folder)
    device = torch_device(study.engine.device)
    model: Model = study.model.built("models")
    pool, downstream, scale = pool_of(study), downstream_of(study), scale_of(study)
    chosen = points(study)
    given = _scaled(scale, pool.inputs).to(device)
    pretrained = _pretrained(job, kept, model, given, pool.labels.to(device), pool.ways)
    references = [given[members(study, number).to(device)] for number in job.models]
    asked = queries_about(pool.inputs[chosen], study)
    own_labels = pool.labels[chosen]
    # Computed for the first missing finetuning that needs them, once for all finetunings.
    after: Tensor | None = None
    starts: dict[int, tuple[Tensor, Tensor]] = {}
    for name, finetuning in study.finetunings.items():
        rows = [row for row, number in enumerate(job.models) if not kept.has(study.answers_key(number, name))]
        if not rows:
            continue
        after = _scaled(scale, downstream.inputs).to(device) if after is None else after
        released = finetuned(
            model,
            [pretrained[row] for row in rows],
            [references[row] for row in rows],
            after,
            downstream.labels.to(device),
            downstream.ways,
            finetuning,
            [(study.seed, job.models[row]) for row in rows],
        )
        for row, (fixed, parameters) in zip(rows, released, strict=True):
            if row not in starts:
                start = ReleasedModel(
                    with_statistics(model, pretrained[row], references[row]), pretrained[row], scale
                )
                found = start.predict(asked.flatten(0, 1)).reshape(*asked.shape[:2], -1)
                own = found.gather(2, own_labels[:, None, None].expand(*asked.shape[:2], 1))
                starts[row] = (own, start.predict(pool.inputs).argmax(1) == pool.labels)
            own, right = starts[row]
            inside = torch.zeros(len(pool.labels), dtype=torch.bool)
            inside[members(study, job.models[row])] = True
            query = ReleasedModel(fixed, parameters, scale)
            kept.write(
                study.answers_key(job.models[row], name),
                {
                    "probabilities": ask_about(query, asked, downstream.ways),
                    "start": own,
                    "member": inside[chosen].to(torch.uint8),
                    "accuracy": _accuracy(query, downstream.inputs, downstream.labels),
                    "start_accuracies": torch.stack([right[inside].double().mean(), right[~inside].double().mean()]),
                },
            )
    return len(job.models)


def ask_about(query: Query, asked: Tensor, ways: int, at_once: int = 1000) -> Tensor:
    """Return the answers `(P, A, ways)` to queries `asked (P, A, ...)`; raises `ValueError` where one has none."""
    found = ask(query, asked.flatten(0, 1), ways, at_once)
    if found.complaint:
        raise ValueError(found.complaint)
    return found.probabilities.reshape(*asked.shape[:2], ways)


def queries_about(inputs: Tensor, study: Study) -> Tensor:
    """Return what is asked about each point, `(P, A, ...)`: the point itself, then its augmentations."""
    asked = [inputs]
    for number in range(study.queries.augmented):
        asked.append(augmented(inputs, keyed_generator(study.seed, "augmented", number)))
    return torch.stack(asked, dim=1)


def metered(query: Query, study: Study) -> Metered:
    """Return a victim's query with the study's budget."""
    return Metered(query, study.queries.budget, study.queries.per_second)


def _pretrained(
    job: ModelJob, kept: Kept, model: Model, inputs: Tensor, labels: Tensor, ways: int
) -> list[Parameters]:
    study = job.study
    found = {number: kept.read(study.pretraining_key(number)) for number in job.models}
    missing = [number for number, parameters in found.items() if parameters is None]
    if missing:
        shape = tuple(inputs.shape[1:])
        trained = train(
            model,
            [model.initialize(shape, ways, keyed_generator(study.seed, "start", number)) for number in missing],
            inputs,
            labels,
            torch.stack([members(study, number) for number in missing]),
            study.pretraining,
            [keyed_generator(study.seed, "pretraining", number) for number in missing],
        )
        for number, parameters in zip(missing, trained, strict=True):
            kept.write(study.pretraining_key(number), parameters)
            found[number] = parameters
    return [_on(inputs.device, found[number]) for number in job.models]


def _on(device: torch.device, parameters: Parameters | None) -> Parameters:
    return {name: value.to(device) for name, value in (parameters or {}).items()}


def _scaled(scale: Scale | None, inputs: Tensor) -> Tensor:
    return inputs if scale is None else scale(inputs)


def _accuracy(query: Query, inputs: Tensor, labels: Tensor) -> Tensor:
    mean: Tensor = (query.predict(inputs).argmax(1) == labels).double().mean()
    return mean


def in_turn(study: Study) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield each victim and the numbers of the models that are its shadows."""
    for victim in range(study.victims or study.models):
        others = [number for number in range(study.models) if number != victim]
        order = torch.randperm(len(others), generator=keyed_generator(study.seed, "shadows", victim))
        yield victim, [others[place] for place in order[: study.shadows or len(others)].tolist()]
