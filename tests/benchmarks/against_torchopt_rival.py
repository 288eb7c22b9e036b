"""The other library's side of `against_torchopt.py`: MAML in a plain loop over tasks, as its documentation writes it.

Runs in an environment with torch and TorchOpt or learn2learn; it need not have metaleak.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Task = tuple[Tensor, Tensor, Tensor, Tensor]


def network(initial: dict[str, Tensor]) -> nn.Sequential:
    """Return the module whose parameters are `initial`, in that order: an MLP, or a Conv4 with strides."""
    layers: list[nn.Module] = []
    convolutions = [value for name, value in initial.items() if name.startswith("block") and value.ndim == 4]
    linears = [value for name, value in initial.items() if name.endswith("weight") and value.ndim == 2]
    for weight in convolutions:
        filters, channels, *_ = weight.shape
        # The statistics of the batch at hand, as MAML's own code has it.
        norm = nn.BatchNorm2d(filters, track_running_stats=False)
        layers += [nn.Conv2d(channels, filters, 3, stride=2, padding=1), norm, nn.ReLU()]
    layers.append(nn.Flatten())
    for weight in linears[:-1]:
        layers += [nn.Linear(weight.shape[1], weight.shape[0]), nn.ReLU()]
    layers.append(nn.Linear(linears[-1].shape[1], linears[-1].shape[0]))
    module = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), initial.values(), strict=True):
            parameter.copy_(value)
    return module


def torchopt_loop(module: nn.Module, steps: int, rate: float) -> Callable[[Sequence[Task]], list[tuple[Tensor, ...]]]:
    """Return the loop of TorchOpt's few-shot example: `MetaSGD` steps, then the state is put back."""
    import torchopt

    optimizer = torchopt.MetaSGD(module, lr=rate)
    initial = tuple(module.parameters())

    def loop(tasks: Sequence[Task]) -> list[tuple[Tensor, ...]]:
        gradients = []
        module_state = torchopt.extract_state_dict(module, by="reference", detach_buffers=True)
        optimizer_state = torchopt.extract_state_dict(optimizer, by="reference")
        for support_inputs, support_labels, query_inputs, query_labels in tasks:
            for _ in range(steps):
                optimizer.step(F.cross_entropy(module(support_inputs), support_labels))
            loss = F.cross_entropy(module(query_inputs), query_labels)
            gradients.append(torch.autograd.grad(loss, initial))
            torchopt.recover_state_dict(module, module_state)
            torchopt.recover_state_dict(optimizer, optimizer_state)
        return gradients

    return loop


def learn2learn_loop(
    module: nn.Module, steps: int, rate: float
) -> Callable[[Sequence[Task]], list[tuple[Tensor, ...]]]:
    """Return the loop of learn2learn's examples: clone, adapt, differentiate."""
    import learn2learn

    maml = learn2learn.algorithms.MAML(module, lr=rate, first_order=False)
    initial = tuple(module.parameters())

    def loop(tasks: Sequence[Task]) -> list[tuple[Tensor, ...]]:
        gradients = []
        for support_inputs, support_labels, query_inputs, query_labels in tasks:
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(F.cross_entropy(learner(support_inputs), support_labels))
            loss = F.cross_entropy(learner(query_inputs), query_labels)
            gradients.append(torch.autograd.grad(loss, initial))
        return gradients

    return loop


LOOPS = {"torchopt": torchopt_loop, "learn2learn": learn2learn_loop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=LOOPS, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--passes", type=int, required=True)
    options = parser.parse_args()

    torch.set_num_threads(1)
    inputs = np.load(options.inputs)
    initial = {
        name.removeprefix("initial/"): torch.from_numpy(value)
        for name, value in inputs.items()
        if name.startswith("initial/")
    }
    parts = [torch.from_numpy(inputs[name]) for name in ("support", "support_labels", "query", "query_labels")]
    tasks = list(zip(*parts, strict=True))
    loop = LOOPS[options.library](network(initial), options.steps, options.rate)

    computed = loop(tasks)  # the first pass warms up, and is what is compared
    stacked = {name: torch.stack(values).numpy() for name, *values in zip(initial, *computed, strict=True)}
    np.savez(options.result.with_suffix(".npz"), **stacked)
    del computed
    seconds = []
    for _ in range(options.passes):
        started = time.perf_counter()
        loop(tasks)
        seconds.append(time.perf_counter() - started)
    versions = {options.library: version(options.library), "torch": torch.__version__}
    options.result.write_text(json.dumps({"seconds": seconds, "versions": versions}))


if __name__ == "__main__":
    main()
