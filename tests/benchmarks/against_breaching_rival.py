"""breaching's side of `against_breaching.py`: `invertinggradients`, one gradient after the other.

Runs in an environment with breaching; it need not have metaleak.
"""

import argparse
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

warnings.simplefilter("ignore")
import breaching  # noqa: E402

IMAGE = (3, 32, 32)
STRIDES = (2, 2, 1)


def network(initial: dict[str, Tensor]) -> nn.Sequential:
    """Return the module whose parameters are `initial`, in that order: DLG's LeNet, or an MLP with ReLU."""
    convolutions = [value for name, value in initial.items() if name.endswith("weight") and value.ndim == 4]
    linears = [value for name, value in initial.items() if name.endswith("weight") and value.ndim == 2]
    layers: list[nn.Module] = []
    for weight, stride in zip(convolutions, STRIDES, strict=False):
        filters, channels, *_ = weight.shape
        layers += [nn.Conv2d(channels, filters, 5, stride=stride, padding=2), nn.Sigmoid()]
    layers.append(nn.Flatten())
    for weight in linears[:-1]:
        layers += [nn.Linear(weight.shape[1], weight.shape[0]), nn.ReLU()]
    layers.append(nn.Linear(linears[-1].shape[1], linears[-1].shape[0]))
    module = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), initial.values(), strict=True):
            parameter.copy_(value)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--passes", type=int, required=True)
    parser.add_argument("--total-variation", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = {name: torch.from_numpy(value) for name, value in np.load(options.inputs).items()}
    initial = {name.removeprefix("initial/"): value for name, value in inputs.items() if name.startswith("initial/")}
    gradients = {
        name.removeprefix("gradient/"): value for name, value in inputs.items() if name.startswith("gradient/")
    }
    targets = len(next(iter(gradients.values())))
    # Images that are not normalized: pixels in [0, 1].
    metadata = SimpleNamespace(
        shape=IMAGE, modality="vision", mean=[0.0] * 3, std=[1.0] * 3, classes=5, task="classification"
    )
    payload = [{"parameters": list(initial.values()), "buffers": None, "metadata": metadata}]
    labels = torch.arange(options.images)

    def attacker(iterations: int) -> Any:
        settings = breaching.get_attack_config("invertinggradients")
        settings.optim.max_iterations = iterations
        settings.optim.step_size = options.rate
        settings.regularization.total_variation.scale = options.total_variation
        setup = {"device": torch.device("cpu"), "dtype": torch.float}
        return breaching.attacks.prepare_attack(network(initial), nn.CrossEntropyLoss(), settings, setup)

    def invert(by: Any, target: int) -> Tensor:
        shared = {
            "gradients": [gradients[name][target] for name in initial],
            "buffers": None,
            "metadata": {"num_data_points": options.images, "labels": labels, "local_hyperparams": None},
        }
        found, _ = by.reconstruct(payload, [shared], {})
        data: Tensor = found["data"]
        return data

    # The objectives are scripted: the first calls compile, and are not measured.
    made = attacker(options.iterations)
    invert(attacker(10), 0)
    seconds = []
    for _ in range(options.passes):
        started = time.perf_counter()
        found = [invert(made, target) for target in range(targets)]
        seconds.append(time.perf_counter() - started)
    np.savez(options.result.with_suffix(".npz"), found=torch.stack(found).numpy())
    versions = {name: version(name) for name in ("breaching", "torch")}
    done = targets * options.iterations
    options.result.write_text(json.dumps({"seconds": seconds, "done": done, "versions": versions}))


if __name__ == "__main__":
    main()
