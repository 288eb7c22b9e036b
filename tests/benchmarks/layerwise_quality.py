"""What layer-by-layer inversion rebuilds of one image: R-GAP, the hybrid method, and what the operators save.

    METALEAK_DATA=../shared/data python tests/benchmarks/layerwise_quality.py [rgap] [trained] [hybrid] [dense]
        [security] [--images N] [--seed S] [--first I] [--case NAME] [--methods A,B] [--combine FILE ...]

`rgap`: FCN3 on Fashion-MNIST and CNN6 and CNN6-d on CIFAR-10 (test images), binary logistic loss, random weights, in
float64 and float32. `trained`: the same with weights trained to tell even from odd classes, and the share of other
images that they classify rightly; of CIFAR-10 the test images alone, most of them to train on. `hybrid`: beside R-GAP
where constraints are missing, with DLG and cosine + TV, to which the label is known: a line of JSON an image, then
the table; `--case` is one of the networks, `--first` the first image, and `--combine` makes the table of such lines.
`dense`: one layer of CNN6 by LSMR and by the pseudo-inverse of its matrix, seconds and memory. `security`: ranks and
seconds. Intervals are 95 %, images resampled.
"""

import gzip
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad

sys.path.append(str(Path(__file__).parent))

from single_image import descended, gradient_of, logistic, starts

from metaleak.attacks.evaluation.lpips import Lpips
from metaleak.attacks.evaluation.ssim import ssim
from metaleak.attacks.inversion.classical import cosine_tv_attack, dlg_attack
from metaleak.attacks.layerwise.chain import chain_of
from metaleak.attacks.layerwise.hybrid import reconstruct_hybrid
from metaleak.attacks.layerwise.least_squares import Constraints, solve
from metaleak.attacks.layerwise.operators import Convolution, dense_matrix
from metaleak.attacks.layerwise.rgap import Reconstruction, reconstruct
from metaleak.attacks.layerwise.security import ConvolutionShape, rank_of
from metaleak.clients.datasets import FashionMNIST
from metaleak.clients.models import Sliding, TorchModule
from metaleak.clients.randomness import keyed_generator


def cnn6(second: int) -> nn.Module:
    """Return R-GAP's CNN6 (36 filters in the second convolution) or CNN6-d (20)."""
    widths = (3, 12, second, 36, 36, 64, 128)
    kernels = ((4, 2, 2), (3, 2, 1), (3, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 1))
    layers: list[nn.Module] = []
    for (fan_in, fan_out), (kernel, stride, padding) in zip(pairwise(widths), kernels, strict=True):
        layers += [nn.Conv2d(fan_in, fan_out, kernel, stride, padding, bias=False), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3200, 1, bias=False))


def fcn3() -> nn.Module:
    """Return R-GAP's FCN3."""
    hidden = [
        nn.Linear(784, 1000, bias=False),
        nn.LeakyReLU(0.2),
        nn.Linear(1000, 100, bias=False),
        nn.LeakyReLU(0.2),
    ]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 1, bias=False))


def one_layer() -> nn.Module:
    """Return one convolution that lacks 1470 of 3072 constraints, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, bias=False), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(1350, 1, bias=False)
    )


def cifar(count: int, seed: int, batch: str = "test_batch") -> tuple[Tensor, Tensor]:
    """Return images of CIFAR-10 in [0, 1] `(n, 3, 32, 32)`, float64, and their labels of -1 and 1."""
    with gzip.open(Path(os.environ["METALEAK_DATA"]) / "cifar10" / f"{batch}.bin.gz") as file:
        raw = torch.from_numpy(np.frombuffer(file.read(), np.uint8).reshape(-1, 3073).copy())
    chosen = raw[torch.randperm(len(raw), generator=keyed_generator("images", seed))[:count]]
    return chosen[:, 1:].reshape(-1, 3, 32, 32).double() / 255, chosen[:, 0].double() % 2 * 2 - 1


def fashion(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the same of Fashion-MNIST."""
    found = FashionMNIST().load()
    chosen = torch.randperm(len(found.labels), generator=keyed_generator("images", seed))[:count]
    return found.examples[chosen].double() / 255, found.labels[chosen].double() % 2 * 2 - 1


Method = Callable[..., Reconstruction]


def trained(module: nn.Module, images: Tensor, labels: Tensor, seed: int, steps: int = 600) -> dict[str, Tensor]:
    """Return weights after `steps` of Adam at 0.001 on batches of 64 of the images, binary logistic loss."""
    generator = keyed_generator("training", seed)
    model = TorchModule(module)
    parameters = model.initialize(tuple(images.shape[1:]), 1, generator)
    for value in parameters.values():
        value.requires_grad_()
    optimizer = torch.optim.Adam(parameters.values(), lr=0.001)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        F.softplus(-labels[batch].float() * model(parameters, images[batch].float())[:, 0]).mean().backward()
        optimizer.step()
    return {name: value.detach() for name, value in parameters.items()}


def right(module: nn.Module, parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> float:
    """Return the share of images on whose label's side the logit lies."""
    return float((TorchModule(module)(parameters, images.float())[:, 0] * labels > 0).double().mean())


def rebuilt(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    method: Method,
    seed: int,
    dtype: torch.dtype = torch.float64,
    weights: dict[str, Tensor] | None = None,
) -> Iterator[Reconstruction]:
    """Yield what a method makes of the gradient of each image, at `weights` or at random ones of its own."""
    model = TorchModule(module)
    for place, (image, label) in enumerate(zip(images.to(dtype), labels, strict=True)):
        fresh = weights or model.initialize(tuple(image.shape), 1, keyed_generator("start", seed, place))
        parameters = {name: value.to(dtype) for name, value in fresh.items()}

        def loss(parameters: dict[str, Tensor], image: Tensor = image, label: Tensor = label) -> Tensor:
            return F.softplus(-float(label) * model(parameters, image[None])).sum()

        yield method(chain_of(model, parameters, tuple(image.shape)), grad(loss)(parameters), "logistic")


def psnr(made: Tensor, image: Tensor) -> float:
    return float(-10 * torch.log10(((made.double().clamp(0, 1) - image) ** 2).mean().clamp(min=1e-40)))


@cache
def _lpips() -> Lpips:
    return Lpips.read(Path(os.environ["METALEAK_DATA"]) / "lpips_alexnet" / "lpips_v0.1_alexnet.npz")


def perceived(made: Tensor, image: Tensor) -> tuple[float, float]:
    """Return SSIM and LPIPS of one reconstruction, clamped to [0, 1]."""
    pair = made.double().clamp(0, 1).numpy()[None], image.numpy()[None]
    return float(ssim(*pair)[0]), float(_lpips()(*pair)[0])


def _line(case: str, found: list[Reconstruction], images: Tensor, seconds: float) -> dict[str, Any]:
    raw = np.array(
        [float(((one.example.double() - image) ** 2).mean()) for one, image in zip(found, images, strict=True)]
    )
    values = np.array([psnr(one.example, image) for one, image in zip(found, images, strict=True)])
    structural, distances = zip(
        *(perceived(one.example, image) for one, image in zip(found, images, strict=True)), strict=True
    )
    return {
        "case": case,
        "images": len(values),
        "median MSE": f"{np.median(raw):.1e}",
        "median PSNR, dB": _median(values),
        "SSIM": _median(structural, 3),
        "LPIPS": _median(distances, 3),
        "first bad layer": next((layer.name for layer in reversed(found[0].layers) if layer.residual > 1e-3), "none"),
        "s an image": f"{seconds / len(values):.1f}",
    }


def _show(rows: list[dict[str, Any]]) -> None:
    # What this imports is only there where federations are simulated.
    from measuring import show

    show(rows, False)
    sys.stdout.flush()


def _median(values: Sequence[float], digits: int = 1) -> str:
    """Return the median and its interval, values resampled."""
    random, values = np.random.default_rng(0), np.asarray(values)
    medians = [np.median(values[random.integers(0, len(values), len(values))]) for _ in range(1000)]
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{np.median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def measure_rgap(count: int, seed: int) -> None:
    """Print R-GAP's lines."""
    for case, module, images in (
        ("FCN3, Fashion-MNIST", fcn3(), fashion(count, seed)),
        ("CNN6, CIFAR-10", cnn6(36), cifar(count, seed)),
        ("CNN6-d, CIFAR-10", cnn6(20), cifar(min(count, 5), seed)),
    ):
        for dtype in (torch.float64, torch.float32):
            if dtype == torch.float32 and case.startswith("CNN6-d"):
                continue
            started = time.perf_counter()
            found = list(rebuilt(module, *images, reconstruct, seed, dtype))
            line = _line(f"{case}, {str(dtype)[6:]}", found, images[0], time.perf_counter() - started)
            _show([line])


def measure_trained(count: int, seed: int) -> None:
    """Print R-GAP's lines on trained networks."""
    for case, module, images in (
        ("FCN3, Fashion-MNIST", fcn3(), fashion(10_000, seed)),
        ("CNN6, CIFAR-10", cnn6(36), cifar(10_000, seed)),
    ):
        parts = slice(count), slice(count, count + 1000), slice(count + 1000, None)
        asked, others, shown = ((images[0][part], images[1][part]) for part in parts)
        weights = trained(module, *shown, seed)
        accuracy = right(module, weights, *others)
        for dtype in (torch.float64, torch.float32):
            started = time.perf_counter()
            found = list(rebuilt(module, *asked, reconstruct, seed, dtype, weights))
            line = _line(f"{case}, {str(dtype)[6:]}", found, asked[0], time.perf_counter() - started)
            _show([{**line, "accuracy": f"{accuracy:.1%}"}])


HYBRID: dict[str, Callable[[], nn.Module]] = {"3->6 k4 s2": one_layer, "CNN6-d": lambda: cnn6(20)}
CLASSICAL = {"DLG": dlg_attack, "cosine + TV": cosine_tv_attack}
METHODS = ("R-GAP", "hybrid", *CLASSICAL)


def measure_hybrid(count: int, seed: int, first: int, case: str, methods: Sequence[str]) -> None:
    """Print one line per image and network, and their table."""
    images, labels = cifar(first + count, seed)
    cases = [case] if case else list(HYBRID)
    show_hybrid(
        [
            hybrid_line(one, images[place], labels[place], place, seed, methods)
            for one in cases
            for place in range(first, first + count)
        ]
    )


def hybrid_line(
    case: str, image: Tensor, label: Tensor, place: int, seed: int, methods: Sequence[str]
) -> dict[str, Any]:
    """Return the PSNR of each of the methods, and its seconds, on one image and the network's weights for it."""
    model, shape = TorchModule(HYBRID[case]()), tuple(image.shape)
    line: dict[str, Any] = {"case": case, "image": place}
    fresh = model.initialize(shape, 1, keyed_generator("start", seed, place))
    parameters = {name: value.double() for name, value in fresh.items()}
    gradient = gradient_of(model, parameters, image, label, logistic)
    stacked = {name: value[None] for name, value in gradient.items()}
    for name in methods:
        started = time.perf_counter()
        if name in CLASSICAL:
            schedule, start = CLASSICAL[name]().schedule(), starts(shape, place + 1, seed)[place:]
            (made,) = descended(schedule, model, fresh, stacked, label[None].float(), start)
        else:
            method = reconstruct if name == "R-GAP" else reconstruct_hybrid
            made = method(chain_of(model, parameters, shape), gradient, "logistic").example
        line |= {name: psnr(made.nan_to_num(0.5), image), f"{name}, s": time.perf_counter() - started}
        line |= dict(zip((f"{name}, SSIM", f"{name}, LPIPS"), perceived(made.nan_to_num(0.5), image), strict=True))
        print(json.dumps(line), flush=True)
    return line


def show_hybrid(lines: list[dict[str, Any]]) -> None:
    """Print the medians of each network and method, and of what each has more than R-GAP on the same image."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        found.setdefault((line["case"], line["image"]), {}).update(line)
    rows = []
    for case, name in product(HYBRID, METHODS):
        mine = [line for line in found.values() if line["case"] == case and name in line]
        more = [line[name] - line["R-GAP"] for line in mine if "R-GAP" in line]
        if mine:
            row = {"case": case, "method": name, "images": len(mine)}
            row["median PSNR, dB"] = _median([line[name] for line in mine])
            row["more than R-GAP"] = _median(more) if more else ""
            for measure in ("SSIM", "LPIPS"):
                seen = [line[f"{name}, {measure}"] for line in mine if f"{name}, {measure}" in line]
                row[measure] = f"{_median(seen, 3)} of {len(seen)}" if seen else ""
            rows.append({**row, "s an image": float(np.median([line[f"{name}, s"] for line in mine]))})
    _show(rows)


def measure_dense() -> None:
    """Print seconds and bytes of both ways through CNN6's second layer, the largest."""
    generator = keyed_generator("dense")
    operator = Convolution(
        torch.randn(36, 12, 3, 3, generator=generator, dtype=torch.float64) / 10,
        (12, 17, 17),
        Sliding((2, 2), (1, 1)),
    )
    x = torch.rand(operator.input_shape, generator=generator, dtype=torch.float64)
    dz = torch.randn(operator.output_shape, generator=generator, dtype=torch.float64)
    constraints = Constraints(operator, dz, operator.weight_gradient(x, dz), operator.forward(x))
    before = _peak()
    started = time.perf_counter()
    ours = solve(constraints).x
    free = time.perf_counter() - started
    free_memory = max(_peak() - before, 3 * 8 * (constraints.values.numel() + 3 * x.numel()) / 2**20)
    before = _peak()
    started = time.perf_counter()
    matrix = dense_matrix(operator, dz)
    values = torch.cat([operator.forward(x).flatten(), operator.weight_gradient(x, dz).flatten()])
    theirs = (torch.linalg.pinv(matrix) @ values).reshape(x.shape)
    dense = time.perf_counter() - started
    rows = [
        {"way": "operators, LSMR", "s": free, "MiB": free_memory, "MSE": f"{float(((ours - x) ** 2).mean()):.1e}"},
        {
            "way": "pseudo-inverse",
            "s": dense,
            "MiB": _peak() - before,
            "MSE": f"{float(((theirs - x) ** 2).mean()):.1e}",
        },
    ]
    _show(rows)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_security() -> None:
    """Print the deficits of the check values and of larger layers."""
    cases = {
        "3->6 k3": ((6, 3, 3, 32), (1, 0)),
        "3->6 k4 s2": ((6, 3, 4, 32), (2, 0)),
        "3->1 k3": ((1, 3, 3, 32), (1, 0)),
        "3->3 k3 p1": ((3, 3, 3, 32), (1, 1)),
        "CNN6-d, second": ((20, 12, 3, 17), (2, 1)),
        "Conv4 28, first": ((32, 1, 3, 28), (2, 1)),
        "Conv4 28, second": ((32, 32, 3, 14), (2, 1)),
        "Conv4 84 max, first": ((32, 3, 3, 84), (1, 1)),
        "Conv4 84 max, second": ((32, 32, 3, 42), (1, 1)),
        "Conv4 84 max, third": ((32, 32, 3, 21), (1, 1)),
        "Conv4 84 stride, second": ((32, 32, 3, 42), (2, 1)),
        "ResNet-18 stem, 7x7 s2": ((64, 3, 7, 32), (2, 3)),
        "ResNet-18 stage 1 on 32x32": ((64, 64, 3, 32), (1, 1)),
        "ResNet-18 stage 2, first": ((128, 64, 3, 32), (2, 1)),
        "ResNet-18 stage 2": ((128, 128, 3, 16), (1, 1)),
    }
    for name, ((filters, channels, kernel, side), (stride, padding)) in cases.items():
        sliding = Sliding((stride, stride), (padding, padding))
        started = time.perf_counter()
        rank = rank_of(ConvolutionShape((filters, channels, kernel, kernel), (channels, side, side), sliding))
        row = {"layer": name, "unknowns": rank.unknowns, "rank - n": -rank.deficit, "exact": rank.exact}
        _show([{**row, "s": time.perf_counter() - started, "peak MiB": _peak()}])
        sys.stdout.flush()


def main() -> None:
    """Print the tables that were asked for, all by default."""
    torch.set_num_threads(1)
    words = sys.argv[1:]
    if "--combine" in words:
        texts = [Path(file).read_text().splitlines() for file in words[words.index("--combine") + 1 :]]
        show_hybrid([json.loads(line) for text in texts for line in text if line.startswith('{"case"')])
        return

    def option(name: str, default: str) -> str:
        return words[words.index(name) + 1] if name in words else default

    count, seed, first = (int(option(*one)) for one in (("--images", "20"), ("--seed", "1"), ("--first", "0")))
    tables = ("rgap", "trained", "hybrid", "dense", "security")
    for name in [word for word in words if word in tables] or tables:
        if name == "rgap":
            measure_rgap(count, seed)
        elif name == "trained":
            measure_trained(count, seed)
        elif name == "hybrid":
            methods = option("--methods", ",".join(METHODS)).split(",")
            measure_hybrid(count, seed, first, option("--case", ""), methods)
        elif name == "dense":
            measure_dense()
        else:
            measure_security()


if __name__ == "__main__":
    main()
