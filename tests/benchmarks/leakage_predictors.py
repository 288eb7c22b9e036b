"""What predicts how much a network's gradient of one image reveals: 39 architectures, untrained and trained.

    METALEAK_DATA=../shared/data python tests/benchmarks/leakage_predictors.py [--seed S] [--images N] [--data NAME]
        [--part I/N] [--combine FILE ...]

Fashion-MNIST, and CIFAR-10's test images averaged to 16x16. Each network is attacked at random weights and after
training on 8 000 images (of 1 000 of them batch norm in evaluation mode has its statistics), by the gradient of one
image in float32, cross-entropy, label known. Attacks: cosine and total variation by Adam, which all networks have in
common; the squared distance by L-BFGS from where that ends; and R-GAP where it applies. "best" is R-GAP where the
audit says that every layer's input is determined, and of the others the one whose gradient is nearer to the one seen:
an attacker can tell. The predictors are computed at one other image of the same data, or from the shapes alone. PSNRs
of a network are medians over its images. Each case is a line of JSON; `--combine` reads such lines and prints the
tables, as does a run of all. Intervals are 95 %, architectures resampled.
"""

import gzip
import itertools
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

sys.path.append(str(Path(__file__).parent))

from single_image import cross_entropy, descended, gradient_of, starts

from metaleak.attacks.inversion.classical import cosine_tv_attack, dlg_attack
from metaleak.attacks.layerwise.audit import Audit, audit
from metaleak.attacks.layerwise.chain import chain_of
from metaleak.attacks.layerwise.rgap import reconstruct
from metaleak.clients.datasets import FashionMNIST
from metaleak.clients.episode import Parameters
from metaleak.clients.models import TorchModule
from metaleak.clients.models.normalization import batch_statistics, normalize_by, normalize_over_groups
from metaleak.clients.randomness import keyed_generator

LEVELS = (1e-7, 1e-5, 1e-3, 1e-2, 1e-1)
"""Noise, as a part of the gradient's norm, for which reconstruction errors are predicted; the first is float32's."""

ATTACKS = cosine_tv_attack(iterations=600), dlg_attack(iterations=600, rate=0.01, boxed=True)
"""The second starts where the first ends."""

STEPS = 400
"""Batches that a network is trained on."""

SPREAD = 0.25
"""Deviation of a pixel before anything is seen."""


class Norm(nn.Module):
    """A norm from plain operations: `group` of 4 channels, `layer`, `batch`, or `evaluation`.

    The last two are batch norm: at the statistics of the batch at hand, of one image its own, and, outside training,
    at those that `settle` has set.
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.kind, self.width = kind, {"group": 4, "layer": channels}.get(kind, 0)
        self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("scale", torch.ones(1, channels, 1, 1))
        self.seen = self.mean, self.scale

    def forward(self, features: Tensor) -> Tensor:
        if self.width:
            return normalize_over_groups(features, self.gain, self.shift, self.width)
        if self.kind == "evaluation" and not self.training:
            return normalize_by(features, (self.mean, self.scale), self.gain, self.shift)
        statistics = batch_statistics(features)
        if self.training:
            self.seen = statistics[0].detach(), statistics[1].detach()
        return normalize_by(features, statistics, self.gain, self.shift)


class Skip(nn.Module):
    """A convolution of equal width and size, and perhaps a norm, added to its input."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        inner: list[nn.Module] = [nn.Conv2d(channels, channels, 3, 1, 1)]
        self.inner = nn.Sequential(*inner, *([Norm(channels, norm)] if norm else []))

    def forward(self, features: Tensor) -> Tensor:
        inner: Tensor = self.inner(features)
        return features + inner


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.2),
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}

Convolutions = tuple[tuple[int, int, int], ...]
"""Filters, kernel and stride of each; padding is half of the kernel."""


@dataclass(frozen=True)
class Architecture:
    """Convolutions, each with a norm, an activation and, after the first, pooling; dense layers; a classifier."""

    convolutions: Convolutions = ((12, 5, 2), (12, 3, 1))
    activation: str = "leaky"
    norm: str = ""
    pool: str = ""
    hidden: tuple[int, ...] = ()
    skip: bool = False

    def module(self, shape: tuple[int, ...]) -> nn.Module:
        """Return the network for inputs of this shape and ten classes."""
        layers: list[nn.Module] = []
        channels = shape[0]
        for place, (filters, kernel, stride) in enumerate(self.convolutions):
            layers.append(nn.Conv2d(channels, filters, kernel, stride, kernel // 2))
            layers += [Norm(filters, self.norm)] if self.norm else []
            layers.append(ACTIVATIONS[self.activation]())
            if self.pool and place == 0:
                layers.append(nn.MaxPool2d(2) if self.pool == "max" else nn.AvgPool2d(2))
            channels = filters
        layers += [Skip(channels, self.norm), ACTIVATIONS[self.activation]()] if self.skip else []
        layers.append(nn.Flatten())
        with torch.no_grad():
            width = nn.Sequential(*layers)(torch.zeros(2, *shape)).shape[1]
        for units in self.hidden:
            layers += [nn.Linear(width, units), ACTIVATIONS[self.activation]()]
            width = units
        return nn.Sequential(*layers, nn.Linear(width, 10))


ARCHITECTURES = {
    "base: 12 k5 s2, 12 k3": Architecture(),
    "first width 2": Architecture(((2, 5, 2), (12, 3, 1))),
    "first width 4": Architecture(((4, 5, 2), (12, 3, 1))),
    "first width 6": Architecture(((6, 5, 2), (12, 3, 1))),
    "widths 24": Architecture(((24, 5, 2), (24, 3, 1))),
    "second width 4": Architecture(((12, 5, 2), (4, 3, 1))),
    "second width 4, s2": Architecture(((12, 5, 2), (4, 3, 2))),
    "one convolution": Architecture(((12, 5, 2),)),
    "one of 2 filters": Architecture(((2, 5, 2),)),
    "one of 1 filter, k3 s1": Architecture(((1, 3, 1),)),
    "one of 3 filters, k4 s2": Architecture(((3, 4, 2),)),
    "three convolutions": Architecture(((12, 5, 2), (12, 3, 1), (12, 3, 1))),
    "five convolutions": Architecture(((12, 5, 2), *[(12, 3, 1)] * 4)),
    "strides 1, 2": Architecture(((12, 5, 1), (12, 3, 2))),
    "stride 3": Architecture(((12, 5, 3), (12, 3, 1))),
    "strides 2, 2": Architecture(((12, 5, 2), (24, 3, 2))),
    "strides 2, 2, 2": Architecture(((8, 5, 2), (16, 3, 2), (32, 3, 2))),
    "kernel 3": Architecture(((12, 3, 2), (12, 3, 1))),
    "kernel 7": Architecture(((12, 7, 2), (12, 3, 1))),
    "relu": Architecture(activation="relu"),
    "elu": Architecture(activation="elu"),
    "tanh": Architecture(activation="tanh"),
    "sigmoid": Architecture(activation="sigmoid"),
    "softplus": Architecture(activation="softplus"),
    "batch norm": Architecture(norm="batch"),
    "batch norm, evaluation": Architecture(norm="evaluation"),
    "group norm": Architecture(norm="group"),
    "layer norm": Architecture(norm="layer"),
    "relu, batch norm, evaluation": Architecture(activation="relu", norm="evaluation"),
    "max pooling": Architecture(((12, 5, 1), (12, 3, 1)), pool="max"),
    "average pooling": Architecture(((12, 5, 1), (12, 3, 1)), pool="average"),
    "relu, max pooling, s2": Architecture(((12, 5, 2), (12, 3, 1)), "relu", pool="max"),
    "skip": Architecture(skip=True),
    "relu, skip": Architecture(activation="relu", skip=True),
    "group norm, skip": Architecture(norm="group", skip=True),
    "base, dense 64": Architecture(hidden=(64,)),
    "dense 64": Architecture((), hidden=(64,)),
    "dense 256-64, relu": Architecture((), "relu", hidden=(256, 64)),
    "dense 32-32, sigmoid": Architecture((), "sigmoid", hidden=(32, 32)),
}


def fashion() -> tuple[Tensor, Tensor]:
    """Return the images of Fashion-MNIST in [0, 1] `(n, 1, 28, 28)`, and their labels."""
    found = FashionMNIST().load()
    return found.examples.float() / 255, found.labels


def cifar() -> tuple[Tensor, Tensor]:
    """Return CIFAR-10's test images in [0, 1], averaged over squares of two pixels, `(n, 3, 16, 16)`, and labels."""
    with gzip.open(Path(os.environ["METALEAK_DATA"]) / "cifar10" / "test_batch.bin.gz") as file:
        raw = torch.from_numpy(np.frombuffer(file.read(), np.uint8).reshape(-1, 3073).copy())
    return F.avg_pool2d(raw[:, 1:].reshape(-1, 3, 32, 32).float() / 255, 2), raw[:, 0].long()


DATA = {"fashion": fashion, "cifar": cifar}


def trained(model: TorchModule, parameters: Parameters, images: Tensor, labels: Tensor, seed: int) -> Parameters:
    """Return the parameters after `STEPS` of Adam at 0.002 on batches of 64."""
    generator = keyed_generator("training", seed)
    learned = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    optimizer = torch.optim.Adam(learned.values(), lr=0.002)
    model.module.train()
    for _ in range(STEPS):
        batch = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(learned, images[batch]), labels[batch]).backward()
        optimizer.step()
    model.module.eval()
    return {name: value.detach() for name, value in learned.items()}


def settle(model: TorchModule, parameters: Parameters, images: Tensor) -> None:
    """Set the statistics that batch norms have in evaluation mode to those of the images `(n, C, H, W)`."""
    model.module.train()
    with torch.no_grad():
        model(parameters, images)
    model.module.eval()
    for layer in model.module.modules():
        if isinstance(layer, Norm):
            layer.mean, layer.scale = layer.seen


def flat(tensors: Parameters) -> Tensor:
    """Return all of the tensors as one vector."""
    return torch.cat([value.flatten() for value in tensors.values()])


def predictors(
    model: TorchModule, parameters: Parameters, image: Tensor, label: Tensor, found: Audit
) -> dict[str, Any]:
    """Return what is computed of a network without an attack, at one `image`."""
    wide, image = {name: value.double() for name, value in parameters.items()}, image.double()

    def shares(image: Tensor) -> Tensor:
        return flat(gradient_of(model, wide, image, label, cross_entropy))

    gram, gradient = gram_of(shares, image), shares(image)
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    largest, count = float(eigenvalues[-1]), len(gradient)
    noise = torch.randn(4, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pull = vjp(shares, image)[1]
    moved = np.mean([float(pull(one * gradient.norm() / one.norm())[0].norm()) for one in noise])
    first = found.layers[0]
    line: dict[str, Any] = {
        "c": found.c_of_convolutions,
        "covered": found.covered,
        "first deficit": first.deficit,
        "I2F": moved / max(largest, 1e-300) / math.sqrt(image.numel()),
        "parameters": count,
        "gradient norm": float(gradient.norm()),
        "condition": 0.5 * math.log10(max(largest, 1e-300) / max(float(eigenvalues[0]), largest * 1e-17, 1e-300)),
    }
    spread = smooth_spread(tuple(image.shape))
    root = spread.sqrt()
    basis = cosines(tuple(image.shape))
    inside = root[:, None] * (basis @ gram @ basis.T) * root
    values, vectors = torch.linalg.eigh(inside)
    weights = (vectors.square() * spread[:, None]).sum(dim=0)
    for level in LEVELS:
        variance = (level * float(gradient.norm())) ** 2 / count
        seen = eigenvalues * SPREAD**2 / max(variance, 1e-300)
        line[f"white error {level:g}"] = -10 * math.log10(SPREAD**2 * float((1 / (1 + seen)).mean()) + 1e-30)
        line[f"effective rank {level:g}"] = float((seen / (1 + seen)).mean())
        left = 1 / (1 + values.clamp(min=0) / max(variance, 1e-300))
        line[f"smooth error {level:g}"] = -10 * math.log10(float((weights * left).mean()) + 1e-30)
    return line


def gram_of(shares: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Return `J^T J (n, n)` of the Jacobian of `shares` at the image of n pixels, in float64."""
    count = image.numel()
    pull = vjp(shares, image)[1]

    def column(direction: Tensor) -> Tensor:
        found: Tensor = pull(jvp(shares, (image,), (direction,))[1])[0]
        return found.flatten()

    directions = torch.eye(count, dtype=torch.float64).reshape(count, *image.shape)
    rows = [vmap(column)(part).detach() for part in torch.split(directions, 64)]
    gram = torch.cat(rows)
    return (gram + gram.T) / 2


def cosines(shape: tuple[int, ...]) -> Tensor:
    """Return the orthonormal two-dimensional cosine transform of images of this shape, as a matrix `(n, n)`."""
    channels, height, width = shape
    rows, columns = (dct(np.eye(side), axis=0, norm="ortho") for side in (height, width))
    return torch.from_numpy(np.kron(np.eye(channels), np.kron(rows, columns)))


def smooth_spread(shape: tuple[int, ...]) -> Tensor:
    """Return the variance of each cosine coefficient `(n,)` of a smooth image: 1 / frequency^2, mean `SPREAD`^2."""
    channels, height, width = shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    one = 1.0 / (1.0 + rows.double() ** 2 + columns.double() ** 2)
    every = one.flatten().repeat(channels)
    return every * SPREAD**2 / every.mean()


def psnr(made: Tensor, image: Tensor) -> float:
    """Return the PSNR in dB, peak 1, at most 200."""
    return float(-10 * torch.log10(((made.double().clamp(0, 1) - image.double()) ** 2).mean().clamp(min=1e-20)))


def attacked(
    model: TorchModule, parameters: Parameters, images: Tensor, labels: Tensor, seed: int, determined: bool
) -> dict[str, Any]:
    """Return the PSNR of each attack on each image, and of the best of them as an attacker can tell.

    That is R-GAP where the audit says that every layer is `determined`, else the attempt with the nearest gradient.
    """
    shape = tuple(images.shape[1:])
    gradients = [
        gradient_of(model, parameters, image, label, cross_entropy)
        for image, label in zip(images, labels, strict=True)
    ]
    stacked = {name: torch.stack([one[name] for one in gradients]) for name in gradients[0]}
    common, then = (attack.schedule() for attack in ATTACKS)
    near = descended(common, model, parameters, stacked, labels, starts(shape, len(images), seed))
    nearer = descended(then, model, parameters, stacked, labels, near)
    wide = {name: value.double() for name, value in parameters.items()}
    line: dict[str, Any] = {"cosine + TV": [], "L-BFGS": [], "R-GAP": [], "best": [], "residual": []}
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        seen = {name: value.double() for name, value in gradients[place].items()}
        tried = {"cosine + TV": near[place].double(), "L-BFGS": nearer[place].double().nan_to_num(0.5)}
        try:
            tried["R-GAP"] = reconstruct(chain_of(model, wide, shape), seen, "cross_entropy").example
        except ValueError as error:
            line["refused"] = str(error)[:160]
        residuals = {}
        for name, made in tried.items():
            missed = flat(gradient_of(model, wide, made, label, cross_entropy)) - flat(seen)
            residuals[name] = float(missed.norm() / flat(seen).norm())
            line[name].append(round(psnr(made, image), 2))
        choice = ["R-GAP"] if determined and "R-GAP" in tried else ["cosine + TV", "L-BFGS"]
        best = min(choice, key=lambda name: residuals[name])
        line["best"].append(line[best][-1])
        line["residual"].append(residuals[best])
    return line


def cases(data: str, count: int, seed: int, part: tuple[int, int]) -> list[dict[str, Any]]:
    """Compute and print the lines of one data set, of each N-th architecture from the I-th on."""
    images, labels = DATA[data]()
    order = torch.randperm(len(images), generator=keyed_generator("images", seed))
    images, labels = images[order], labels[order]
    asked, auditing, others, learned = slice(0, count), count, slice(count + 1, count + 1001), slice(2000, 10_000)
    shape, lines = tuple(images.shape[1:]), []
    for name in itertools.islice(ARCHITECTURES, part[0], None, part[1]):
        model = TorchModule(ARCHITECTURES[name].module(shape))
        fresh = model.initialize(shape, 10, keyed_generator("start", seed, name))
        settle(model, fresh, images[learned][:1000])
        found = audit(model, fresh, shape, seed)
        determined = found.covered == "exact" and found.c == 0
        for state in ("untrained", "trained"):
            started, parameters = time.perf_counter(), fresh
            if state == "trained":
                parameters = trained(model, fresh, images[learned], labels[learned], seed)
                settle(model, parameters, images[learned][:1000])
            with torch.no_grad():
                right = model(parameters, images[others]).argmax(dim=1) == labels[others]
            line = {
                "data": data,
                "seed": seed,
                "architecture": name,
                "state": state,
                "accuracy": round(float(right.double().mean()), 3),
                "audited I2F": found.i2f,
                **predictors(model, parameters, images[auditing], labels[auditing], found),
                **attacked(model, parameters, images[asked], labels[asked], seed, determined),
                "seconds": round(time.perf_counter() - started, 1),
            }
            print(json.dumps(line), flush=True)
            lines.append(line)
    return lines


ATTACK_COLUMNS = ("cosine + TV", "L-BFGS", "R-GAP", "best")

CHOSEN = 1e-1
"""The noise level of the combined prediction where layers cannot be solved one by one; chosen on seed 3."""


def _field(name: str) -> Callable[[dict[str, Any]], float]:
    return lambda line: line[name]


def _determined(line: dict[str, Any]) -> bool:
    """Return whether the audit says that every layer's input is determined."""
    return bool(line["covered"] == "exact" and line["c"] == 0)


PREDICTORS: dict[str, Callable[[dict[str, Any]], float]] = {
    "c(M), of the convolutions": lambda line: line["c"],
    "first layer's deficit": lambda line: -line["first deficit"],
    "I2F, log": lambda line: -math.log10(line["I2F"]),
    "I2F of the audit, log": lambda line: -math.log10(line["audited I2F"] or 1e9),
    "parameters": lambda line: line["parameters"],
    "gradient's norm": lambda line: line["gradient norm"],
    "condition of the Jacobian, log": lambda line: -line["condition"],
    **{
        f"effective rank at {level:g}": lambda line, level=level: line[f"effective rank {level:g}"]
        for level in LEVELS
    },
    **{f"expected PSNR at {level:g}": lambda line, level=level: line[f"white error {level:g}"] for level in LEVELS},
    **{
        f"expected PSNR at {level:g}, smooth": lambda line, level=level: line[f"smooth error {level:g}"]
        for level in LEVELS
    },
    "expected PSNR, whichever applies": lambda line: line[
        f"white error {LEVELS[0]:g}" if _determined(line) else f"smooth error {CHOSEN:g}"
    ],
}
"""What is said to grow with what a network gives away, from a case's line."""


def tables(lines: list[dict[str, Any]]) -> None:
    """Print the correlations of each predictor with the PSNR measured, and the cases."""
    groups: dict[str, Callable[[dict[str, Any]], bool]] = {
        "untrained": lambda line: line["state"] == "untrained",
        "trained": lambda line: line["state"] == "trained",
        "both": lambda line: True,
        "both, every layer determined": _determined,
        "both, the others": lambda line: not _determined(line),
    }
    for data, (group, belongs) in itertools.product(DATA, groups.items()):
        some = [line for line in lines if line["data"] == data and belongs(line)]
        if len({line["architecture"] for line in some}) > 3:
            correlations(f"{data}, {group}", some)
    columns = ("data", "architecture", "state", "accuracy", "c", "I2F", "condition", *ATTACK_COLUMNS)
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for line in lines:
        shown = [line["data"], line["architecture"], line["state"], f"{line['accuracy']:.0%}"]
        c = "–" if line["c"] is None else f"{line['c']:.0f}" + ("" if line["covered"] == "exact" else "*")
        shown += [c, f"{line['I2F']:.1e}", f"{10 ** line['condition']:.0e}"]
        shown += [f"{np.median(line[name]):.1f}" if line[name] else "–" for name in ATTACK_COLUMNS]
        print("| " + " | ".join(shown) + " |")


def correlations(title: str, lines: list[dict[str, Any]]) -> None:
    """Print Spearman's correlation of each predictor with the PSNR of the common and of the best attack."""
    names = sorted({line["architecture"] for line in lines})
    print(f"\n{title}: {len(names)} architectures, {len(lines)} networks")
    print("| predictor | cosine + TV | best |")
    print("|---|---|---|")
    generator = np.random.default_rng(0)
    drawn = [generator.choice(names, len(names)) for _ in range(1000)]
    places = {name: [at for at, line in enumerate(lines) if line["architecture"] == name] for name in names}
    resampled = [[at for name in choice for at in places[name]] for choice in drawn]
    for name, of in PREDICTORS.items():
        said = np.array([of(line) for line in lines], float)
        cells = []
        for target in ("cosine + TV", "best"):
            found = np.array([np.median(line[target]) for line in lines])
            value = rank_correlation(said, found)
            spread = [rank_correlation(said[rows], found[rows]) for rows in resampled]
            low, high = np.nanquantile(spread, [0.025, 0.975])
            cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation, NaN where either is constant."""
    ranks = np.stack([rankdata(one), rankdata(other)])
    apart = ranks - ranks.mean(axis=1, keepdims=True)
    size = float(np.linalg.norm(apart[0]) * np.linalg.norm(apart[1]))
    return float(apart[0] @ apart[1]) / size if size else math.nan


def main() -> None:
    """Compute the cases that are asked for, and print the tables of all."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    words = sys.argv[1:]

    def option(name: str, default: str) -> str:
        return words[words.index(name) + 1] if name in words else default

    if "--combine" in words:
        files = words[words.index("--combine") + 1 :]
        tables(
            [json.loads(text) for file in files for text in Path(file).read_text().splitlines() if text[:1] == "{"]
        )
        return
    seed, count = int(option("--seed", "1")), int(option("--images", "6"))
    place, _, parts = option("--part", "0/1").partition("/")
    lines = []
    for data in [option("--data", "")] if "--data" in words else DATA:
        lines += cases(data, count, seed, (int(place), int(parts)))
    if int(parts) == 1:
        tables(lines)


if __name__ == "__main__":
    main()
