"""Running a suite of pretraining studies: every missing model and attack, none twice."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import yaml

from metaleak.attacks.attack import Progress
from metaleak.attacks.work import Map, Work
from metaleak.clients.randomness import derived_seed
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.errors import WrongUsage, one_line
from metaleak.deploy.pretraining.assessment import assess_attack
from metaleak.deploy.pretraining.reading import studies_of
from metaleak.deploy.pretraining.shadow_models import answers_of, make_models, map_of_models
from metaleak.deploy.pretraining.study import Study
from metaleak.deploy.pretraining.study_state import noted
from metaleak.deploy.results.json_file import write_json
from metaleak.deploy.results.reading import SUITE_FILE
from metaleak.deploy.results.schema import MAX_CELLS, Cell, SuiteState
from metaleak.deploy.results.study_file import described_study
from metaleak.deploy.simulate.run_directory import held, write_text
from metaleak.deploy.suites.benchmark import WRITTEN
from metaleak.deploy.suites.plan import Key, labels
from metaleak.server.record.plain_file import is_plain
from metaleak.server.record.whole_file import remove_parts

_OUTSIDE = ("name", "attacks", "engine")
"""Keys of a study that change no number of its attacks, or are in their own names."""


@dataclass(frozen=True)
class StudyRun:
    """A study of one finetuning, and its attacks by the name of their results."""

    study: Study
    attacks: Mapping[str, Plugin]


def benchmark_studies(
    suite: Suite,
    out: Path,
    on_cell: Progress | None = None,
    on_model: Progress | None = None,
    changes: Sequence[str] = (),
    models: Callable[[Study], AbstractContextManager[Map]] = map_of_models,
) -> list[Cell]:
    """Run all cells of a `suite` of pretraining that are missing in `out`, and return all, including failed ones.

    Each finetuning of each combination is a run. Its models are kept in `out/models` under a hash of what decides
    them, so that runs share models. `suite.json` lists all cells from the start and is written after each one. A cell
    that fails is returned with its error and tried again by the next call. When nothing is missing, no worker is
    started. Raises `ValueError` while another process works on the suite in `out`.
    """
    runs, cells = planned_studies(studies_of(suite, changes))
    out.mkdir(parents=True, exist_ok=True)
    with held(out, "this suite"):
        remove_parts(out, WRITTEN)
        write_text(out / "suite.yaml", yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False))
        missing: dict[str, list[str]] = {}
        for run, name in cells:
            if is_plain(out, f"{run}/attacks/{name}/attack.json"):
                cells[run, name] = cells[run, name].model_copy(update={"status": "done"})
            else:
                missing.setdefault(run, []).append(name)

        def tell() -> None:
            write_json(out / SUITE_FILE, SuiteState(name=suite.name, cells=tuple(cells.values())))
            if on_cell is not None:
                on_cell(sum(cell.status != "waiting" for cell in cells.values()), len(cells))

        tell()
        if missing:
            with models(next(iter(runs.values())).study) as mapped:
                for run, names in missing.items():
                    for name, error in _ended(runs[run], names, out, run, mapped, on_model):
                        status = "done" if error is None else "failed"
                        cells[run, name] = cells[run, name].model_copy(update={"status": status, "error": error})
                        tell()
    return list(cells.values())


def planned_studies(studies: list[Study]) -> tuple[dict[str, StudyRun], dict[Key, Cell]]:
    """Return the runs of `studies` of one finetuning each, by directory, and the cells as they are before them."""
    runs: dict[str, StudyRun] = {}
    cells: dict[Key, Cell] = {}
    described = [described_study(study.model_dump(mode="json")) for study in studies]
    for study, plain, label in zip(studies, described, labels(described), strict=True):
        (finetuning,) = study.finetunings
        decides = [
            study.answers_key(0, finetuning),
            *(study.models, study.victims, study.shadows, study.queries.access),
        ]
        run = f"runs/{_digest(decides, 24)}"
        attacks = {}
        for plugin in study.attacks:
            resolved = plugin.resolved("pretraining_attacks")
            name = f"{plugin.name.rpartition(':')[2]}-{_digest(resolved, 8)}"
            attacks[name] = plugin
            cells[run, name] = Cell(
                id=hashlib.sha256(f"{run}/{name}".encode()).hexdigest()[:16],
                run=run,
                label=label,
                defenses=tuple(plain["defenses"]),
                attack=name,
                attack_config=resolved,
                experiment={key: value for key, value in plain.items() if key not in (*_OUTSIDE, "defenses")},
                status="waiting",
            )
        before = runs.get(run)
        runs[run] = StudyRun(study, {**(before.attacks if before else {}), **attacks})
    if len(cells) > MAX_CELLS:
        raise WrongUsage(f"the suite has {len(cells)} cells, more than the {MAX_CELLS} that are reported")
    return runs, cells


def _ended(
    run: StudyRun, names: list[str], out: Path, inside: str, mapped: Map, on_model: Progress | None
) -> Iterator[tuple[str, str | None]]:
    """Yield each of the missing attacks of a run with its error, or `None`, as it ends."""
    study, folder, path = run.study, out / "models", out / inside
    (finetuning,) = study.finetunings
    seed = derived_seed(study.seed, "attack")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with noted(study, path, folder):
            make_models(study, folder, Work(seed, on_model, mapped))
        answers = answers_of(study, folder, finetuning)
    except Exception as trouble:  # noqa: BLE001 (one run's trouble, of whatever kind, is not the others')
        yield from ((name, one_line(trouble)) for name in names)
        return
    for name in names:
        error = None
        try:
            assess_attack(study, finetuning, run.attacks[name], answers, path / "attacks" / name, Work(seed))
        except Exception as trouble:  # noqa: BLE001 (as above, of one cell)
            error = one_line(trouble)
        yield name, error


def _digest(decides: object, length: int) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:length]
