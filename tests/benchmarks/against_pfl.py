"""Users per second of pfl-research's simulator and of metaleak, on the same local computation.

Every user takes one full-batch SGD step of the same small MLP on the same 20 images of 28x28 and sends the change of
its parameters, which is averaged. One process each, then both cores each: pfl by `torchrun`, ours on Flower and Ray.
Nothing is recorded, evaluated or written in the measured rounds. The averages of the first round are compared.

    python -m venv X && X/bin/pip install 'pfl[pytorch]'
    python tests/benchmarks/against_pfl.py --pfl-python X/bin/python
"""

import argparse
import cProfile
import json
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from alternating import (
    HERE,
    alternating,
    arguments,
    has_module,
    in_words,
    listed,
    machine,
    main_of,
    run_side,
    show,
    spread,
    yes_or_no,
)
from pydantic import BaseModel, ConfigDict
from torch.func import grad_and_value

from metaleak.clients import client_app
from metaleak.clients.datasets import LabeledExamples
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules import Perturb, cross_entropy
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate.launch import simulate
from metaleak.deploy.simulate.rounds import RoundDone
from metaleak.deploy.simulate.run_directory import RunDirectory, read_parameters
from metaleak.deploy.simulate.simulation import Simulation

_RATE = 0.1
_WAYS = 10
_IMAGES = 2  # of each class; 20 a user
_HELD_OUT = 10  # images a class, for the evaluation after the last round that a simulation always does
_BAR = 1.0
_CORES = 2


class LocalStep(BaseModel):
    """Federated averaging with one local step, as a rule: a learner sends how far one step of SGD takes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = _RATE

    def adapt(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        """Return the parameters after one step on the support set."""
        return self._step(model, parameters, episode.support_inputs, episode.support_labels)[0]

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, torch.Tensor]:
        """Return w - theta, with theta after one step on all of the learner's images, and the loss at w."""
        images = torch.cat([episode.support_inputs, episode.query_inputs])
        labels = torch.cat([episode.support_labels, episode.query_labels])
        stepped, loss = self._step(model, parameters, images, labels)
        return {name: value - stepped[name] for name, value in parameters.items()}, loss

    def _step(
        self, model: Model, parameters: Parameters, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[Parameters, torch.Tensor]:
        # The rate stands at the loss, one number, and not at the gradient, which is as large as the model.
        def descent(parameters: Parameters) -> torch.Tensor:
            return -self.rate * cross_entropy(model, parameters, images, labels)

        step, scaled_loss = grad_and_value(descent)(parameters)
        return {name: value + step[name] for name, value in parameters.items()}, scaled_loss / -self.rate


class NoiseImages(BaseModel):
    """Uniform noise, 28x28, as many images of every class as `users` need: time does not depend on the pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = 1000

    def load(self) -> LabeledExamples:
        """Return the images, the same for the same `users`."""
        count = _WAYS * (_IMAGES * self.users + _HELD_OUT)
        generator = torch.Generator().manual_seed(0)
        return LabeledExamples(
            examples=torch.randint(256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8),
            labels=torch.arange(count) % _WAYS,
            classes=tuple(str(label) for label in range(_WAYS)),
        )


def experiment(users: int, rounds: int) -> Experiment:
    """Return the experiment that our side simulates."""
    per_class = _IMAGES * users + _HELD_OUT
    return experiment_from(
        {
            "data": {"name": "against_pfl:NoiseImages", "users": users},
            "model": {"name": "mlp", "hidden": [64]},
            "rule": {"name": "against_pfl:LocalStep"},
            "task": {"ways": _WAYS, "shots": 1, "queries": _IMAGES - 1},
            "partition": {"learners": users, "held_out": _HELD_OUT / per_class, "non_members": 0.0},
            "server": {"rounds": rounds, "optimizer": {"name": "sgd", "rate": 1.0}},
            "evaluation": {"every": 10**6, "tasks": 2, "queries": 1},
            "record": {"rounds": 0},
            "engine": {"actors": _CORES},
            "attacks": [],
        },
        "against_pfl",
    )


def write_inputs(folder: Path, users: int) -> None:
    """Write what pfl's side needs to compute the same: every user's images and labels, and the initial parameters."""
    federation = experiment(users, 1).federation()
    episodes = [federation.learner(number).episode(1) for number in range(users)]
    images = [torch.cat([one.support_inputs, one.query_inputs]).numpy() for one in episodes]
    labels = [torch.cat([one.support_labels, one.query_labels]).numpy() for one in episodes]
    np.save(folder / "images.npy", np.stack(images))
    np.save(folder / "labels.npy", np.stack(labels))
    np.savez(
        folder / "initial.npz", **{name: value.numpy() for name, value in federation.initial_parameters().items()}
    )


def our_side(where: str, users: int, rounds: int, result: Path, profile: str | None) -> None:
    """Simulate in this process (`one`) or on Ray actors (`both`), and write the seconds of each measured round.

    A round lasts from the end of the last to its own end, whatever happens in between. `first` is one round only, to
    compare what it computes. The parameters at the end are written beside the result.
    """
    torch.set_num_threads(1)
    ends: list[tuple[float, float]] = []

    def ended(done: RoundDone) -> None:
        ends.append((time.perf_counter(), time.process_time()))

    # One round more to warm up, and one to end: it closes with an evaluation, which is not what is measured.
    wanted = experiment(users, 1 if where == "first" else rounds + 2)
    out = result.with_suffix(".run")
    run = simulate(wanted, out, ended) if where == "both" else _in_this_process(wanted, out, ended, profile)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    if any(line["refused"] for line in lines):
        raise SystemExit("learners were refused")
    after = read_parameters(run.path / "parameters.safetensors", like=wanted.federation().initial_parameters())
    np.savez(result.with_suffix(".npz"), **{name: value.numpy() for name, value in after.items()})
    versions = {name: version(name) for name in ("metaleak", "torch", "flwr", "ray")}
    seconds, cpu_seconds = np.diff(np.array(ends), axis=0)[:-1].T.tolist() if len(ends) > 1 else ([], [])
    result.write_text(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "versions": versions}))


def _in_this_process(
    wanted: Experiment, out: Path, ended: Callable[[RoundDone], None], profile: str | None
) -> RunDirectory:
    from local_grid import LocalGrid

    def forget(done: RoundDone) -> None:
        # The grid of the tests keeps every message; here that would fill the memory.
        grid.seen.clear()
        ended(done)

    simulation = Simulation(wanted, out, forget)
    grid = LocalGrid(client_app(simulation.federation), nodes=1)
    if profile is None:
        return simulation.serve(grid)
    with cProfile.Profile() as profiler:
        run = simulation.serve(grid)
    profiler.dump_stats(profile)
    return run


def difference(folder: Path) -> tuple[float, float]:
    """Return by how much the sides' average updates of round 1 differ at most, and pfl's greatest entry."""
    initial = np.load(folder / "initial.npz")
    ours, theirs = np.load(folder / "first.npz"), np.load(folder / "pfl-one.npz")
    update = {name: theirs[name] - initial[name] for name in initial}
    apart = max(float(np.abs(ours[name] - initial[name] - update[name]).max()) for name in initial)
    return apart, max(float(np.abs(value).max()) for value in update.values())


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run both sides in turn, and print what was measured."""
    users, rounds = (options.users, options.rounds) if not options.quick else (50, 2)
    repeats = 1 if options.quick else options.repeats
    write_inputs(folder, users)

    def ours(where: str) -> dict[str, Any]:
        result = folder / f"{where}.json"
        shutil.rmtree(result.with_suffix(".run"), ignore_errors=True)
        side = ["--side", where, "--users", str(users), "--rounds", str(rounds), "--result", str(result)]
        return run_side([sys.executable, str(HERE / "against_pfl.py"), *side], result)

    def pfl(where: str) -> dict[str, Any]:
        result = folder / f"pfl-{where}.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc-per-node={_CORES}"]
        inputs = ["--inputs", str(folder), "--result", str(result), "--rounds", str(rounds), "--rate", str(_RATE)]
        script = [str(HERE / "against_pfl_rival.py"), *inputs]
        return run_side([options.pfl_python, *(launcher if where == "both" else []), *script], result)

    runs = alternating(
        {
            "pfl, one process": lambda: pfl("one"),
            "metaleak, one process": lambda: ours("one"),
            f"pfl, {_CORES} processes": lambda: pfl("both"),
            f"metaleak, {_CORES} actors": lambda: ours("both"),
        },
        repeats,
    )
    ours("first")
    apart, greatest = difference(folder)
    per_second = {name: [users / median(run["seconds"]) for run in side] for name, side in runs.items()}
    measured = {name: spread(values) for name, values in per_second.items()}
    versions = {side: runs[f"{side}, one process"][0]["versions"] for side in ("pfl", "metaleak")}
    rows = []
    for label, theirs, mine in (
        ("one process each", "pfl, one process", "metaleak, one process"),
        ("both cores each", f"pfl, {_CORES} processes", f"metaleak, {_CORES} actors"),
    ):
        ratio = measured[mine]["median"] / measured[theirs]["median"]
        both = {"pfl": measured[theirs], "metaleak": measured[mine]}
        rows.append({"case": label, **both, "ratio": ratio, "ahead": ratio > _BAR})
    # Tells what a busy machine did to the numbers above.
    cpu = {
        side: 1e6 * median([median(run["cpu_seconds"]) for run in runs[f"{side}, one process"]]) / users
        for side in ("pfl", "metaleak")
    }
    outcome = {
        "unit": "users/s",
        "users": users,
        "rounds": rounds,
        "repeats": repeats,
        "quick": options.quick,
        "rows": rows,
        "cpu_microseconds_a_user": cpu,
        "update_difference": apart,
        "update_greatest": greatest,
        "versions": versions,
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(outcome, indent=2))
        return
    show(
        f"users/s, {users} users a round, median of {repeats} runs of {rounds} rounds (least to greatest)",
        ("", "pfl", "metaleak", "ratio", "ahead"),
        [
            (
                row["case"],
                in_words(row["pfl"]),
                in_words(row["metaleak"]),
                f"{row['ratio']:.2f}",
                yes_or_no(row["ahead"]),
            )
            for row in rows
        ],
        [
            f"average update of round 1: differs by at most {apart:.2g}, its greatest entry is {greatest:.2g}",
            "one process, CPU time a user: " + ", ".join(f"{side} {value:.0f} us" for side, value in cpu.items()),
            *(f"{side}'s versions: {listed(of)}" for side, of in versions.items()),
            listed(machine()),
            *(["a smoke test: the numbers mean nothing"] if options.quick else []),
        ],
    )


def main() -> int:
    parser = arguments("Users per second: pfl-research's simulator and ours.", repeats=5)
    parser.add_argument(
        "--pfl-python", default=sys.executable, help="the interpreter that has pfl (default: this one)"
    )
    parser.add_argument("--users", type=int, default=1000, help="users a round, all of them each round")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds a run")
    # How the script starts our own side in a process of its own.
    parser.add_argument("--side", choices=("one", "both", "first"), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--profile", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        our_side(options.side, options.users, options.rounds, options.result, options.profile)
        return 0
    if not has_module(options.pfl_python, "pfl"):
        parser.error(f"{options.pfl_python} has no pfl; the head of this file says how to install it")
    return main_of(lambda folder: compare(options, folder))


if __name__ == "__main__":
    sys.exit(main())
