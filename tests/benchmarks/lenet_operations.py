"""How many operations a step of inverting LeNet's gradient takes, and how many a second a core can do.

    python tests/benchmarks/lenet_operations.py

A step is the gradient of the network's parameters and its derivative in the images, in torch alone: what every tool
that inverts gradients computes, without its distance, its total variation and its optimizer. Operations are those
that torch counts (`FlopCounterMode`), two for a multiplication and addition; speeds are of this process's time.
The second table computes several targets as one batch, which saves all overhead for each, but gives the sum of their
gradients, which no attack can use: an attack that needs each of them, by the same convolutions, takes longer.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from against_breaching import CASES, inputs
from measuring import show
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metaleak.clients.kept_memory import keep_freed_memory


def seconds(compute: Callable[[], object], repeats: int = 20) -> float:
    """Return the median processor time of a call."""
    times = []
    for repeat in range(repeats + 3):
        began = time.process_time()
        compute()
        if repeat >= 3:
            times.append(time.process_time() - began)
    return statistics.median(times)


def step(name: str, targets: int = 1) -> Callable[[], tuple[Tensor, ...]]:
    """Return the step of a case of `against_breaching`, with the images of several targets as one batch."""
    case = CASES[name]
    given = inputs(case, 1)
    parameters = {key: value.clone().requires_grad_() for key, value in given.parameters.items()}
    images = torch.rand(targets * case.images, 3, 32, 32, requires_grad=True)
    labels = torch.arange(len(images)) % 5

    def computed() -> tuple[Tensor, ...]:
        loss = F.cross_entropy(case.model(parameters, images), labels)
        gradient = torch.autograd.grad(loss, [*parameters.values()], create_graph=True)
        matched = torch.stack(
            [(made * seen[0]).sum() for made, seen in zip(gradient, given.gradients.values(), strict=True)]
        ).sum()
        return torch.autograd.grad(matched, images)

    return computed


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for name in ("lenet-1", "lenet-5"):
        compute = step(name)
        with FlopCounterMode(display=False) as counter:
            compute()
        count, images = counter.get_total_flops(), CASES[name].images
        took = seconds(compute)
        middle, weight = torch.rand(images, 12, 8, 8), torch.rand(12, 12, 5, 5)
        alone = seconds(lambda middle=middle, weight=weight: [F.conv2d(middle, weight, padding=2) for _ in range(50)])  # type: ignore[misc]
        rows.append(
            {
                "case": name,
                "million operations a step": count / 1e6,
                "milliseconds a step": 1e3 * took,
                "billion a second in it": count / took / 1e9,
                "in its third convolution, forward": 50 * 2 * images * 12 * 64 * 12 * 25 / alone / 1e9,
            }
        )
    show(rows, False)
    batches = {targets: 1e3 * seconds(step("lenet-5", targets)) for targets in (1, 4, 16, 64)}
    show(
        [
            {"targets of lenet-5 in one batch": targets, "milliseconds a target": took / targets}
            for targets, took in batches.items()
        ],
        False,
    )
    square = torch.rand(1024, 1024)
    best = 2 * 1024**3 / seconds(lambda: square @ square) / 1e9
    print(f"a product of 1024x1024 matrices: {best:.0f} billion a second")


if __name__ == "__main__":
    main()
