"""Iterations x targets per second on one core: inverting gradients with breaching and with metaleak.

Both invert plain gradients of small batches of color images, on one network, in float32: cosine and total variation,
Adam on signs, a box, a rate in steps (breaching's `invertinggradients`, Geiping et al. 2020), known labels.

    lenet-1    DLG's network, one image of 3x32x32 per gradient, the classical case
    lenet-5    the same, five images per gradient
    mlp-1      3072-64-64-5, one image

A target is one gradient that is inverted. breaching inverts one after the other; metaleak's side is the public attack
`inverting-gradients` on all of them, including its start and its answers. Each begins at its own noise. So that
neither side is fast by doing less, this script computes for both the cosine distance between the gradients of the
images found and the observed gradients. breaching's total variation takes exactly three channels; unlike ours it
counts the difference between the picture's edge and zero.

    python -m venv X && X/bin/pip install torch torchvision scipy && X/bin/pip install --no-deps \\
        breaching==0.1.2 hydra-core omegaconf antlr4-python3-runtime==4.9.3
    python tests/benchmarks/against_breaching.py --rival-python X/bin/python
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

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
)
from torch import Tensor
from torch.func import grad_and_value, vmap

from metaleak.attacks import inverting_gradients_attack
from metaleak.attacks.attack import Targets
from metaleak.attacks.inversion.matching import matching_loss
from metaleak.attacks.observation import Observation
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.clients.models import MLP, LeNet, Model
from metaleak.clients.rules import Perturb, cross_entropy

IMAGE = (3, 32, 32)
CLASSES = 5
SETTINGS = {"total_variation": 0.2, "rate": 0.1}
"""What breaching's configuration has; its images are not normalized here, so its step is one in pixels."""


class PlainGradient:
    """The rule of federated SGD: no adaptation, the gradient of the query set, and no support set."""

    stays_in_span = True
    support_enters = "direct"

    def adapt(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        return parameters

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, Tensor]:
        gradient, loss = grad_and_value(
            lambda moving: cross_entropy(model, moving, episode.query_inputs, episode.query_labels)
        )(parameters)
        return gradient, loss


class Case(NamedTuple):
    """What is inverted: gradients of `images` images each (of the first classes), on this network."""

    model: Model
    images: int
    targets: int


CASES = {
    "lenet-1": Case(LeNet(), 1, 64),
    "lenet-5": Case(LeNet(), 5, 32),
    "mlp-1": Case(MLP(), 1, 64),
}


class Inputs(NamedTuple):
    """The network's parameters, the images `(T, N, 3, 32, 32)` and their gradients `(T, ...)`."""

    parameters: Parameters
    images: Tensor
    gradients: Parameters


def inputs(case: Case, targets: int) -> Inputs:
    """Return what both sides get; the images are smooth noise, as compressible as pictures."""
    generator = torch.Generator().manual_seed(0)
    parameters = case.model.initialize(IMAGE, CLASSES, generator)
    coarse = torch.rand(targets * case.images, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, IMAGE[1:], mode="bilinear")
    images = images.reshape(targets, case.images, *IMAGE)
    return Inputs(parameters, images, gradients_of(case, parameters, images))


def gradients_of(case: Case, parameters: Parameters, images: Tensor) -> Parameters:
    """Return the gradients `(T, ...)` of batches `images (T, N, 3, 32, 32)` with labels 0, 1, ..."""
    labels, none = torch.arange(case.images), torch.empty(0, *IMAGE)

    def gradient(images: Tensor) -> Parameters:
        episode = Episode(none, torch.empty(0, dtype=torch.int64), images, labels)
        return PlainGradient().meta_gradient(case.model, parameters, episode)[0]

    return {name: value.detach() for name, value in vmap(gradient)(images).items()}


def our_side(case: Case, targets: int, iterations: int, passes: int, chunk: int, result: Path) -> None:
    """Invert all targets `passes` times, and write the seconds of each."""
    torch.set_num_threads(1)
    keep_freed_memory()
    parameters, images, gradients = inputs(case, targets)
    observation = Observation(
        case.model,
        PlainGradient(),
        parameters,
        gradients,
        ways=case.images,
        shots=0,
        queries=1,
        known_support=torch.empty(targets, 0, *IMAGE),
    )
    # One question a gradient; which image it is about does not change what is computed.
    asked = Targets(images[:, 0], torch.arange(targets), torch.zeros(targets, dtype=torch.int64))

    def run(steps: int) -> Callable[[], Any]:
        attack = inverting_gradients_attack(knows="other", chunk=chunk, iterations=steps, **SETTINGS)
        return lambda: attack(observation, asked, seed=0)

    run(3)()
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        answers = run(iterations)()
        seconds.append(time.perf_counter() - started)
    # With one image per gradient the nearest image is the only one.
    np.savez(result.with_suffix(".npz"), found=answers.reconstructions.numpy())
    versions = {name: version(name) for name in ("metaleak", "torch")}
    result.write_text(json.dumps({"seconds": seconds, "done": targets * iterations, "versions": versions}))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run both sides in turn, case by case, and print what was measured."""
    rows = [_compare_one(name, options, folder) for name in options.cases]
    outcome = {
        "unit": "iterations x targets/s",
        "repeats": 1 if options.quick else options.repeats,
        "iterations": options.iterations,
        "quick": options.quick,
        "rows": rows,
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(outcome, indent=2))
        return
    show(
        f"iterations x targets/s on one core, median of {outcome['repeats']} runs (least to greatest)",
        ("case", "breaching", "metaleak", "ratio", "cosine distance left: theirs", "ours"),
        [
            (
                f"{row['case']}, {row['targets']} targets",
                in_words(row["breaching"]),
                in_words(row["metaleak"]),
                f"{row['ratio']:.2f}",
                *("–" if left is None else f"{left:.2g}" for left in (row["left_theirs"], row["left_ours"])),
            )
            for row in rows
        ],
        [
            *(f"{side}: {listed(of)}" for side, of in rows[0]["versions"].items()),
            listed(machine()),
            *(["a smoke test: the numbers mean nothing"] if options.quick else []),
        ],
    )


def _compare_one(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    case = CASES[name]
    targets, theirs_targets = (4, 1) if options.quick else (case.targets, options.rival_targets)
    iterations = 5 if options.quick else options.iterations
    given = inputs(case, targets)
    handed = folder / f"{name}.npz"
    np.savez(
        handed,
        **{f"initial/{key}": value.numpy() for key, value in given.parameters.items()},
        **{f"gradient/{key}": value[:theirs_targets].numpy() for key, value in given.gradients.items()},
    )
    their_result, our_result = folder / f"{name}-theirs.json", folder / f"{name}-ours.json"
    shape = ["--iterations", str(iterations), "--passes", str(options.passes)]

    def theirs() -> dict[str, Any]:
        script = [str(HERE / "against_breaching_rival.py"), "--inputs", str(handed), "--images", str(case.images)]
        tv = ["--total-variation", str(SETTINGS["total_variation"]), "--rate", str(SETTINGS["rate"])]
        return run_side([options.rival_python, *script, *tv, *shape, "--result", str(their_result)], their_result)

    def ours() -> dict[str, Any]:
        script = [str(HERE / "against_breaching.py"), "--side", name, "--targets", str(targets)]
        chunk = ["--chunk", str(options.chunk)]
        return run_side([sys.executable, *script, *chunk, *shape, "--result", str(our_result)], our_result)

    repeats = 1 if options.quick else options.repeats
    runs = alternating({f"breaching, {name}": theirs, f"metaleak, {name}": ours}, repeats)
    other, mine = runs.values()
    measured = {
        side: spread([run["done"] / median(run["seconds"]) for run in of])
        for side, of in (("breaching", other), ("metaleak", mine))
    }
    ratio = measured["metaleak"]["median"] / measured["breaching"]["median"]
    return {
        "case": name,
        "targets": targets,
        **measured,
        "ratio": ratio,
        "left_theirs": _left(case, given, their_result.with_suffix(".npz")),
        "left_ours": _left(case, given, our_result.with_suffix(".npz")) if case.images == 1 else None,
        "versions": {"breaching": other[0]["versions"], "metaleak": mine[0]["versions"]},
    }


def _left(case: Case, given: Inputs, found: Path) -> float:
    """Return the median cosine distance between the gradients of the images found and those observed."""
    images = torch.from_numpy(np.load(found)["found"]).reshape(-1, case.images, *IMAGE)
    made = gradients_of(case, given.parameters, images)
    losses = [
        matching_loss(
            {key: value[row] for key, value in made.items()},
            {key: value[row] for key, value in given.gradients.items()},
            "cosine",
            "joint",
        )
        for row in range(len(images))
    ]
    return float(torch.stack(losses).median())


def main() -> int:
    parser = arguments("Iterations x targets a second: inverting gradients by breaching, and by ours.", repeats=5)
    parser.add_argument("--rival-python", default=sys.executable, help="the interpreter that has it (default this)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--iterations", type=int, default=100, help="of each target (default %(default)s)")
    parser.add_argument("--passes", type=int, default=1, help="measured passes over all targets a run")
    parser.add_argument("--rival-targets", type=int, default=4, help="targets of the other side, one after the other")
    parser.add_argument(
        "--chunk", type=int, default=32, help="targets that ours computes at once (default %(default)s)"
    )
    # How the script starts our own side in a process of its own.
    parser.add_argument("--side", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--targets", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        case = CASES[options.side]
        our_side(case, options.targets, options.iterations, options.passes, options.chunk, options.result)
        return 0
    if not has_module(options.rival_python, "breaching"):
        parser.error(f"{options.rival_python} has no breaching; the head of this file says how to install it")
    return main_of(lambda folder: compare(options, folder))


if __name__ == "__main__":
    sys.exit(main())
