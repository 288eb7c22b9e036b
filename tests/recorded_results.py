"""Runs and suites as their commands would have written them, with scores that are drawn: in milliseconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

from metaleak.attacks.evaluation.membership import evaluate

Defenses = list[dict[str, Any]]
SETTING: dict[str, Any] = {
    "seed": 7,
    "data": {"name": "digits"},
    "task": {"ways": 5, "shots": 1, "queries": 1},
    "model": {"name": "mlp", "hidden": [64]},
    "rule": {"name": "maml", "inner_steps": 1},
    "server": {"rounds": 12, "fraction": 0.5},
}
PRIVACY = {"accounted": None, "delta": 1e-5, "lower_bound": 0.25, "confidence": 0.95}
COST = {"bytes_per_learner": 1_200_000, "dense_bytes": 4_800_000}


def write_run(path: Path, defenses: Defenses, shift: float, accuracy: float, **changes: Any) -> Path:
    """Write a run whose query attack separates by `shift` standard deviations, and its support attack by half."""
    random = np.random.default_rng(int(100 * abs(shift)))
    path.mkdir(parents=True)
    experiment = {"name": "synthetic", **SETTING, "defenses": defenses, **changes}
    (path / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    about = {"status": "done", "started": "2025-01-01T10:00:00Z", "seconds": 3.5, "seed": 7}
    (path / "run.json").write_text(json.dumps({**about, "versions": {"torch": "2.14"}, "error": None}))
    with (path / "metrics.jsonl").open("w") as file:
        for number in range(1, 13):
            now = accuracy * (1 - np.exp(-number / 3))
            band = {"accuracy": now, "accuracy_low": now - 0.02, "accuracy_high": now + 0.02}
            line = {"round": number, "loss": 1.6 * np.exp(-number / 5), "learners": 10, "seconds": 0.1}
            file.write(json.dumps(line | (band if number % 3 == 0 else {"accuracy": None})) + "\n")
    for name, strength in (("query", shift), ("support", shift / 2)):
        write_attack(path / "attacks" / name, name, strength, random)
    return path


def write_attack(path: Path, name: str, shift: float, random: np.random.Generator) -> None:
    path.mkdir(parents=True)
    count, shown = 120, 6
    member = np.arange(2 * count) < count
    scores = random.normal(size=2 * count) + shift * member
    about = {"attack": {"name": name, "iterations": 300}, "asks": name, "round": 12, "knows": "labels"}
    evaluation = evaluate(scores, member, resamples=100).model_dump(mode="json")
    about |= {"seconds": 1.25, "rounds": 1, "privacy": PRIVACY, "cost": COST}
    (path / "attack.json").write_text(json.dumps({**about, "evaluation": evaluation}))
    columns = {"learner": np.arange(2 * count) % 10, "label": np.arange(2 * count) % 5, "member": member}
    pq.write_table(pa.table({**columns, "score": scores, "loss": scores**2}), path / "scores.parquet")
    digits = load_digits().images[: 4 * shown, None].astype(np.float32) / 16
    is_member = (np.arange(2 * shown) < shown).astype(np.uint8)
    prior, other = digits[: 2 * shown], digits[2 * shown :]
    truth = np.where(is_member[:, None, None, None] == 1, prior, other)
    noise = random.normal(size=prior.shape).astype(np.float32) * 0.15
    arrays = {"prior": prior, "reconstruction": (prior + truth) / 2 + noise, "truth": truth}
    score = scores[: 2 * shown].astype(np.float32)
    save_file({**arrays, "member": is_member, "score": score}, path / "gallery.safetensors")


def noise(place: str, law: str, scale: float) -> Defenses:
    return [{"name": "noise", "place": place, "law": law, "scale": scale}]


GRID: list[tuple[Defenses, float, float]] = [
    ([], 3.5, 0.93),
    (noise("shared", "gaussian", 0.1), 2.0, 0.925),
    (noise("shared", "gaussian", 1.0), 0.1, 0.91),
    (noise("shared", "gaussian", 10.0), 0.0, 0.55),
    (noise("support", "laplace", 0.1), 3.0, 0.90),
    (noise("support", "laplace", 1.0), 1.0, 0.80),
    (noise("inner", "gaussian", 1.0), 2.2, 0.85),
]


def write_suite(path: Path, name: str = "noise grid") -> Path:
    cells = []
    for index, (defenses, shift, accuracy) in enumerate(GRID):
        relative = f"runs/{index:04x}"
        write_run(path / relative, defenses, shift, accuracy)
        about = {"run": relative, "defenses": defenses, "status": "done"}
        cells += [
            {**about, "id": f"{index}{attack}", "label": "", "attack": attack, "error": None}
            for attack in ("query", "support")
        ]
    failed = {"run": "runs/ffff", "defenses": noise("query", "laplace", 5.0), "experiment": SETTING}
    failed |= {"id": "f", "label": "", "attack": "query", "status": "failed", "error": "actor died: no memory"}
    (path / "suite.json").write_text(json.dumps({"name": name, "cells": [*cells, failed]}))
    return path
