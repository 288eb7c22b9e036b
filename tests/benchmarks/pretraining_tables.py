"""What finetuned models reveal about the images that they were pretrained on: the tables of docs/pretraining.md.

    python tests/benchmarks/pretraining_tables.py cifar10 --seeds 11 12 13 14 15 > lines.jsonl
    python tests/benchmarks/pretraining_tables.py --combine lines.jsonl

Each line is one result: a case, an attack, a seed. `--combine` makes tables of any number of such files, with
intervals over seeds. `--models FOLDER` keeps the models, so that a second call trains only what is missing.
Without a GPU a seed of `cifar10` takes about six minutes on a core.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch

from metaleak.attacks.evaluation.intervals import Estimate, over_seeds
from metaleak.attacks.work import Work
from metaleak.deploy.pretraining.assessment import assess_study
from metaleak.deploy.pretraining.reading import study_from
from metaleak.deploy.pretraining.shadow_models import make_models

ATTACKS = "metaleak.attacks.pretraining."
RATIO = {"name": ATTACKS + "gaussian_ratio:GaussianRatio"}
PLAIN_RATIO = {**RATIO, "shrunken": False}
LIRA = {"name": ATTACKS + "adapted_lira:AdaptedLiRA"}
TMI = {"name": ATTACKS + "tmi:Metaclassifiers"}
LONG_TMI = {**TMI, "epochs": 160}
RELATIVE = {"name": ATTACKS + "relative_confidence:RelativeConfidence"}
GLOBAL = {"name": ATTACKS + "global_classifier:GlobalClassifier"}
WHITE_BOX = {"name": ATTACKS + "white_box:WhiteBoxLiRA"}
NAMES = {
    "GaussianRatio": "Gaussian ratio",
    "AdaptedLiRA": "adapted LiRA",
    "Metaclassifiers": "TMI",
    "RelativeConfidence": "relative confidence",
    "GlobalClassifier": "global classifier",
    "WhiteBoxLiRA": "white-box LiRA",
}

CIFAR10 = {
    "pool": {"data": "metaleak.clients.datasets:CIFAR10", "classes": [0, 1, 2, 3, 4], "examples": 2000},
    "downstream": {"data": "metaleak.clients.datasets:CIFAR10", "classes": [5, 6, 7, 8, 9]},
    "model": {"name": "metaleak.clients.models:MLP", "hidden": [128]},
    "models": 33,
    "points": 1000,
}
RESAMPLES = 100
"""Of one seed, whose own interval is not shown where there are several."""

PRIVATE = {"clip": 1.0, "steps": 100, "rate": 0.5}
MULTIPLIERS = {"0.5": 70.3183, "1": 37.3064, "4": 10.8117, "inf": 0.0}
"""By epsilon at delta 1e-5: `gaussian_noise_multiplier(epsilon, 100, 1e-5)`, where dp-accounting is not installed."""


def fashion(images: int, rotations: int) -> dict:
    """Fashion-MNIST, so many images a class and model, to MNIST in so many orientations."""
    return {
        **CIFAR10,
        "pool": {"data": "metaleak.clients.datasets:FashionMNIST", "examples": 20 * images},
        "downstream": {"data": "metaleak.clients.datasets:MNIST", "examples": 5000, "rotations": rotations},
        "points": min(1000, 20 * images),
    }


def epsilons(moves: str) -> dict:
    return {
        f"epsilon {epsilon}": {"moves": moves, "private": {**PRIVATE, "noise_multiplier": multiplier}}
        for epsilon, multiplier in MULTIPLIERS.items()
    }


def cases(group: str) -> list[tuple[str, dict]]:
    """Return the studies of a group by name; those that share models follow one another."""
    if group == "cifar10":
        head = {**CIFAR10, "finetunings": {"head": {}}}
        return [
            ("new last layer", {**head, "attacks": [RATIO, PLAIN_RATIO, LIRA, RELATIVE, WHITE_BOX]}),
            ("new last layer, 8 victims", {**head, "victims": 8, "attacks": [RATIO, GLOBAL]}),
            *(
                (f"{count} shadows", {**head, "shadows": count, "attacks": [RATIO, PLAIN_RATIO, LIRA]})
                for count in (8, 16, 32)
            ),
            *(
                (f"access {access}", {**head, "queries": {"access": access}, "attacks": [RATIO]})
                for access in (3, 2, 1, "label")
            ),
        ]
    if group == "tmi":
        head = {**CIFAR10, "finetunings": {"head": {}}, "victims": 8}
        return [("new last layer, 8 victims", {**head, "attacks": [RATIO, TMI, LONG_TMI]})]
    if group == "finetuning":
        whole = {"moves": "all", "training": {"epochs": 20, "rate": 0.003, "momentum": 0.9, "schedule": "cosine"}}
        return [
            ("full finetuning", {**CIFAR10, "finetunings": {"full": whole}, "attacks": [RATIO, LIRA]}),
            ("private", {**CIFAR10, "finetunings": epsilons("head"), "attacks": [RATIO]}),
        ]
    if group == "fashion":
        return [
            (
                f"{10 * rotations} classes, {images} images",
                {**fashion(images, rotations), "attacks": [RATIO, LIRA, WHITE_BOX]},
            )
            for images in (40, 100, 400)
            for rotations in (1, 4)
        ]
    if group == "augmented":
        return [
            (
                f"pretrained {'with' if augment else 'without'} augmentation, {queries} augmented queries",
                {
                    **CIFAR10,
                    "pretraining": {"epochs": 100 if augment else 50, "augment": augment},
                    "queries": {"augmented": queries},
                    "attacks": [RATIO, {**RATIO, "queries": "mean"}, LIRA, {**TMI}, WHITE_BOX],
                    "victims": 8,
                },
            )
            for augment in (True, False)
            for queries in (8,)
        ]
    raise SystemExit(f"no group {group!r}: cifar10, tmi, finetuning, fashion or augmented")


def lines(group: str, seed: int, smaller: dict, kept: str | None, only: str) -> None:
    """Print one line per result of one seed, of the studies in whose name `only` is."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = kept or temporary
        for name, plain in cases(group):
            if only not in name:
                continue
            began = time.monotonic()
            study = study_from({**plain, **smaller, "seed": seed, "name": name}, name)
            models = make_models(study, Path(folder) / "models", Work())
            made = time.monotonic() - began
            for key, found in assess_study(
                study, Path(folder) / "models", Path(temporary) / name, Work(), 100
            ).items():
                evaluation = found.evaluation
                one_percent = evaluation.tpr["0.01"]
                told = {
                    "group": group,
                    "case": name if len(study.finetunings) == 1 else f"{name}, {found.attack['finetuning']}",
                    "attack": attack_name(found.attack),
                    "seed": seed,
                    "auc": evaluation.auc.model_dump(),
                    "tpr": one_percent.model_dump() if one_percent else None,
                    "targets": evaluation.members + evaluation.non_members,
                    "members": evaluation.members,
                    "downstream": found.released.accuracy.value,
                    "start": found.released.start_accuracy,
                    "start_outside": found.released.start_accuracy_outside,
                    "epsilon": found.released.epsilon,
                    "models": models,
                    "seconds_models": round(made, 1),
                    "seconds_attack": found.seconds,
                    "device": device_name(),
                    "key": key,
                }
                print(json.dumps(told), flush=True)


def attack_name(settings: dict) -> str:
    kind = NAMES[settings["name"].rpartition(":")[2]]
    if settings.get("shrunken") is False:
        kind += ", not shrunken"
    if settings.get("queries", "first") != "first":
        kind += f", {settings['queries']} of the queries"
    if settings.get("epochs") == 160:
        kind += ", 160 epochs"
    return kind


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def combine(files: list[str]) -> None:
    """Print a Markdown table a group, one row per case and attack, over all seeds."""
    told = [json.loads(line) for file in files for line in Path(file).read_text().splitlines() if line[:1] == "{"]
    for group in dict.fromkeys(one["group"] for one in told):
        print(f"\n### {group}\n")
        print("| case | attack | seeds | AUC | TPR at 1 % FPR | start: trained on, others | downstream | device |")
        print("|---|---|---|---|---|---|---|---|")
        rows: dict[tuple[str, str], dict[int, dict]] = {}
        for one in told:
            if one["group"] == group:
                rows.setdefault((one["case"], one["attack"]), {})[one["seed"]] = one
        for (case, attack), by_seed in rows.items():
            found = list(by_seed.values())
            units = sum(min(one["members"], one["targets"] - one["members"]) for one in found)
            auc = over_seeds([Estimate(**one["auc"]) for one in found], units)
            rates = [Estimate(**one["tpr"]) for one in found if one["tpr"]]
            rate = interval(over_seeds(rates, units), percent=True) if rates else "–"

            def mean(key: str, found: list[dict] = found) -> str:
                return f"{100 * sum(one[key] for one in found) / len(found):.0f} %"

            start = "–" if math.isnan(found[0]["start"]) else f"{mean('start')}, {mean('start_outside')}"
            print(
                f"| {case} | {attack} | {len(found)} | {interval(auc)} | {rate} | {start} | "
                f"{mean('downstream')} | {found[0]['device']} |"
            )


def interval(estimate: Estimate, percent: bool = False) -> str:
    value, low, high = (100 * one if percent else one for one in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})" if percent else f"{value:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11])
    parser.add_argument("--combine", nargs="+", metavar="FILE")
    parser.add_argument("--models", metavar="FOLDER")
    parser.add_argument("--smaller", type=json.loads, default={}, help="changes of the studies, to try it out")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the studies in whose name it is")
    given = parser.parse_args()
    if given.combine:
        combine(given.combine)
    else:
        for one_seed in given.seeds:
            lines(given.group, one_seed, given.smaller, given.models, given.only)
