"""How many images SPEAR rebuilds from recorded meta-gradients: by rule, task, round, network and defense.

    METALEAK_DATA=../shared/data python tests/benchmarks/spear_quality.py [CASE ...] [--learners N] [--seed S]
        [--programs P]

Each case is simulated with every learner in every round, in this process, and read back from its record: float32, as
on the wire. An image counts as reconstructed at a PSNR of 40 dB or more. Intervals are 95 %, learners resampled.
"Wrong but confirmed": images below 40 dB with a confidence of 0.5 or more, which only confirmed images have.
`--programs 0` searches by random subsets of units alone.

`spear_quality.py batch:N [batch:M ...]` takes plain gradients of as many batches of N images of MNIST, with labels
drawn from five classes, on the same network, in float32.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import measuring
from local_grid import local_simulate

from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.layerwise.batches.recovery import recover
from metaleak.attacks.layerwise.spear_attack import Spear
from metaleak.clients.datasets import MNIST
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP
from metaleak.clients.rules import FedSGD, support_entry
from metaleak.deploy.assess.observe import Attacked, observe
from metaleak.deploy.assess.truth import held_inputs
from metaleak.deploy.config.reading import experiment_from
from metaleak.server import Record

REBUILT = 40.0

BASE: dict[str, Any] = {
    "data": {"name": "mnist"},
    "task": {"ways": 5, "shots": 1, "queries": 1},
    "model": {"name": "mlp", "hidden": [256, 256]},
    "rule": {"name": "maml"},
}
FASHION = {"data": {"name": "fashion-mnist"}}


def _task(shots: int, queries: int, ways: int = 5) -> dict[str, Any]:
    return {"task": {"ways": ways, "shots": shots, "queries": queries}}


def _defended(**defense: Any) -> dict[str, Any]:
    return {"defenses": [defense]}


def _together(**defense: Any) -> dict[str, Any]:
    return {"defenses": [defense, {"name": "secure-aggregation"}]}


CASES: dict[str, dict[str, Any]] = {
    "mnist": {},
    "fashion": FASHION,
    "mnist 64-64": {"model": {"name": "mlp", "hidden": [64, 64]}},
    "mnist 256": {"model": {"name": "mlp", "hidden": [256]}},
    "fashion 64-64": {**FASHION, "model": {"name": "mlp", "hidden": [64, 64]}},
    "fashion 256": {**FASHION, "model": {"name": "mlp", "hidden": [256]}},
    "2 shots": _task(2, 1),
    "5 shots": _task(5, 1),
    "5 queries": _task(1, 5),
    "2 steps": {"rule": {"name": "maml", "inner_steps": 2, "inner_rate": 0.2}},
    "5 steps": {"rule": {"name": "maml", "inner_steps": 5, "inner_rate": 0.1}},
    "first order": {"rule": {"name": "fomaml"}},
    "anil": {"rule": {"name": "anil"}},
    "reptile": {"rule": {"name": "reptile"}},
    "round 10": {"server": {"rounds": 10}},
    "round 50": {"server": {"rounds": 50}},
    "fedsgd": {"rule": {"name": "fedsgd"}},
    "noise 1e-6": _defended(name="noise", place="shared", scale=1e-6),
    "noise 1e-4": _defended(name="noise", place="shared", scale=1e-4),
    "noise 0.01": _defended(name="noise", place="shared", scale=0.01),
    "query noise": _defended(name="noise", place="query", scale=0.3),
    "support noise": _defended(name="noise", place="support", scale=0.3),
    "query noise, expected": _defended(name="noise", place="query", scale=0.3),
    "support noise, expected": _defended(name="noise", place="support", scale=0.3),
    "inner noise": _defended(name="noise", place="inner", scale=0.1),
    "gaussian": _defended(name="gaussian", clip=1.0, epsilon=8),
    "record-level": _defended(name="record-level", clip=1.0, epsilon=8),
    "distributed gaussian": _together(name="distributed-gaussian", clip=1.0, epsilon=8),
    "distributed record-level, fedsgd": {
        "rule": {"name": "fedsgd"},
        **_together(name="distributed-record-level", clip=1.0, epsilon=8),
    },
    "pruning 0.9": _defended(name="pruning", keep=0.9),
    "pruning 0.1": _defended(name="pruning", keep=0.1),
    "quantization 16": _defended(name="quantization", bits=16),
    "quantization 8": _defended(name="quantization", bits=8),
    "sign": _defended(name="sign"),
    "selection": _defended(name="selection"),
    "selection layer1": _defended(name="selection", names=["layer1.*"]),
    "secure aggregation": _defended(name="secure-aggregation"),
}


EXPECTED: dict[str, float] = {"query noise, expected": 1.5, "support noise, expected": 1.5}
"""By how much the attacker expects examples to leave [0, 1], where it expects noise on them."""


def row(name: str, learners: int, seed: int, search: dict[str, int]) -> dict[str, Any]:
    """Simulate one case, attack its last recorded round, and return a line of the table."""
    settings = {
        "seed": seed,
        "partition": {"learners": learners, "non_members": 0.0},
        "server": {"rounds": 1},
        "evaluation": {"every": 10**6, "tasks": 2, "queries": 1},
        "attacks": [],
        **BASE,
        **CASES[name],
    }
    with tempfile.TemporaryDirectory() as folder:
        experiment = experiment_from(settings, name)
        run = local_simulate(experiment, Path(folder) / "run")
        record, federation = Record(run.path / "record"), experiment.federation()
        last = experiment.server.rounds
        attacked = Attacked(record, [last], list(range(learners)), federation)
        observation = observe(attacked, last, Spear())
        started = time.perf_counter()
        made = Spear(**search, beyond=EXPECTED.get(name, 0.0)).reconstruct(observation, seed=0)
        seconds = time.perf_counter() - started
        sets = {which: held_inputs(federation, attacked.learners, last, which) for which in ("query", "support")}
    entry = support_entry(federation.rule)
    shown = ("query",) if entry == "parameters" else ("query", "support")
    held = torch.cat([sets[which] for which in shown], dim=1)
    if not bool(made.examples.isfinite().all() and made.confidence.isfinite().all()):
        raise ValueError(f"{name}: a reconstruction or its confidence is not a number")
    pairing, _ = similarity("image", made.examples.numpy(), held.numpy())
    good = pairing.alike >= REBUILT
    sure = np.take_along_axis(made.confidence.numpy(), pairing.partner.clip(min=0), axis=1) >= 0.5
    sure &= pairing.partner >= 0
    queries = sets["query"].shape[1]
    return {
        "case": name,
        "images": f"{good.shape[0]} x {good.shape[1]}",
        "query": _interval(good[:, :queries].mean(axis=1)),
        "support": _interval(good[:, queries:].mean(axis=1)) if len(shown) == 2 else "does not enter",
        "all of a learner": _interval(good.all(axis=1).astype(float)),
        "median dB": round(float(np.median(pairing.alike)), 1),
        "wrong but confirmed": f"{(sure & ~good).mean():.1%}",
        "s a learner": round(seconds / learners, 1),
    }


def batch_row(size: int, batches: int, seed: int, search: dict[str, int]) -> dict[str, Any]:
    """Recover plain batches of one size, and return a line of the table."""
    data = MNIST().load()
    generator = torch.Generator().manual_seed(seed)
    model, rule = MLP(hidden=(256, 256)), FedSGD()
    images = data.examples[torch.randperm(len(data.examples), generator=generator)[: batches * size]].float() / 255
    held = images.reshape(batches, size, *images.shape[1:])
    labels = torch.randint(5, (batches, size), generator=generator)
    alike, seconds = [], []
    for batch in range(batches):
        parameters = model.initialize(held.shape[2:], 5, generator)
        parts = held[batch], labels[batch]
        episode = Episode(parts[0][:1], parts[1][:1], parts[0][1:], parts[1][1:])
        gradient, _ = rule.meta_gradient(model, parameters, episode)
        layer = (gradient["layer1.weight"], gradient["layer1.bias"])
        sent = (parameters["layer1.weight"], parameters["layer1.bias"])
        started = time.perf_counter()
        found = recover(*layer, *sent, size, **search, seed=batch).inputs.float()
        seconds.append(time.perf_counter() - started)
        made = torch.cat([found, torch.full((size - len(found), found.shape[1]), 0.5)])
        alike.append(
            similarity("image", made.reshape(1, size, 1, 28, 28).numpy(), parts[0][None].numpy())[0].alike[0]
        )
    good = np.stack(alike) >= REBUILT
    return {
        "batch of": size,
        "batches": batches,
        "images": _interval(good.mean(axis=1)),
        "all of a batch": _interval(good.all(axis=1).astype(float)),
        "median dB": round(float(np.median(alike)), 1),
        "s a batch, median": round(float(np.median(seconds)), 2),
    }


def _interval(values: np.ndarray) -> str:
    random = np.random.default_rng(0)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(1000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.1%} [{low:.1%}, {high:.1%}]"


def main() -> None:
    """Print a table with one line per case, each as soon as it is measured."""
    torch.set_num_threads(1)
    words = sys.argv[1:]

    def option(name: str, default: int) -> int:
        if name not in words:
            return default
        place = words.index(name)
        value = int(words[place + 1])
        del words[place : place + 2]
        return value

    learners, seed = option("--learners", 50), option("--seed", 1)
    search = {"samples": option("--samples", 400_000), "programs": option("--programs", 12)}
    for name in words or CASES:
        kind, _, size = name.partition(":")
        made = batch_row(int(size), learners, seed, search) if kind == "batch" else row(name, learners, seed, search)
        measuring.show([made], False)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
