"""How much longer a record-level learner takes than an undefended one, by model and rule.

    python tests/benchmarks/private_speed.py
    python tests/benchmarks/private_speed.py --steps

5 ways, 5 shots, 15 queries, synthetic images of 28x28; four learners at once undefended, as in a cohort. All cells
of a model are timed in turn, in one thread, in processor time, and the least times compared: what else a machine does
can only add. Times of one machine say little, the ratio more. `plain MLP-256` says only of its first layer that it is
dense. `--steps` tells for MLP-256 where the time goes, and what one normal number takes; times of steps include a
microsecond for each time that a step is taken.
"""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP, Conv4, Model
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML, FedSGD, ReleasedMeans, Reptile, batch, batch_meta_gradients, first_order_maml
from metaleak.clients.rules.contributions import OuterProducts
from metaleak.clients.rules.own_outputs import OwnOutputs
from metaleak.defenses import RandomSource, RecordLevel

LEARNERS, WAYS, SHOTS, QUERIES = 4, 5, 5, 15


class PlainMLP(MLP):
    """A class of its own, which promises that its first layer is dense, and nothing of the others."""

    @property
    def input_weight(self) -> str:
        """Return the name of the one parameter that the pixels meet."""
        return super().input_weight


MODELS = {
    "MLP-256": MLP(hidden=(256,)),
    "plain MLP-256": PlainMLP(hidden=(256,)),
    "Conv4-32": Conv4(filters=32, normalization="none"),
}
RULES: dict[str, Any] = {
    "FOMAML": first_order_maml(),
    "ANIL, first order": MAML(order=1, adapts="head"),
    "Reptile": Reptile(),
    "FedSGD": FedSGD(),
    "MAML": MAML(),
}
STEPS: list[tuple[str, Any, str]] = [
    ("images' coordinates", OwnOutputs, "of"),
    ("first outputs", OwnOutputs, "outputs"),
    ("slopes", OuterProducts, "of"),
    ("norms", OuterProducts, "norms"),
    ("weights", RecordLevel, "weights"),
    ("sums", OuterProducts, "added_up"),
    ("noise", RecordLevel, "noisy_mean"),
    ("stacking", batch, "stacked"),
]
"""What a learner of dense layers does, and where."""


def main() -> None:
    """Print the table of ratios, or that of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", action="store_true", help="tell where the time of MLP-256 goes")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each model (default: 20)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.steps:
        _print_steps(chosen.seconds)
        _print_numbers()
        return
    print("| model | rule | undefended, ms a learner | record level, ms | ratio |\n|---|---|---|---|---|")
    for title, model in MODELS.items():
        cells = {
            (name, private): _learners(model, rule, private) for name, rule in RULES.items() for private in (0, 1)
        }
        least = _least(cells, chosen.seconds)
        for name in RULES:
            plain, private = (1000 * least[name, one] / LEARNERS for one in (0, 1))
            print(f"| {title} | {name} | {plain:.1f} | {private:.1f} | {private / plain:.1f} |", flush=True)


def _learners(model: Model, rule: Any, private: bool | int) -> Callable[[], object]:
    """Return what computes four learners of the rule, undefended or private."""
    positions = torch.arange(WAYS)
    episodes = Episode(
        torch.rand(LEARNERS, WAYS * SHOTS, 1, 28, 28, generator=keyed_generator("support")),
        positions.repeat_interleave(SHOTS).expand(LEARNERS, -1),
        torch.rand(LEARNERS, WAYS * QUERIES, 1, 28, 28, generator=keyed_generator("query")),
        positions.repeat_interleave(QUERIES).expand(LEARNERS, -1),
    )
    parameters = model.initialize((1, 28, 28), WAYS, keyed_generator("start"))
    mechanism = RecordLevel(noise_multiplier=1.0).for_readings(rule.readings)
    means = [
        ReleasedMeans(mechanism, lambda reading, step, row=row: RandomSource.of(row, reading, step))
        for row in range(LEARNERS)
    ]
    return lambda: batch_meta_gradients(model, rule, parameters, episodes, means=means if private else ())


def _least(ways: dict[Any, Callable[[], object]], seconds: float) -> dict[Any, float]:
    """Return the least processor time of each, in seconds, of as many turns as fit into so many `seconds`."""
    for way in ways.values():
        way()
    taken = dict.fromkeys(ways, math.inf)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for key, way in ways.items():
            started = time.process_time()
            way()
            taken[key] = min(taken[key], time.process_time() - started)
    return taken


def _print_steps(seconds: float) -> None:
    print(f"| rule | {' | '.join(label for label, *_ in STEPS)} | rest | all | without noise | undefended | ratio |")
    print("|---|" + "---|" * (len(STEPS) + 5))
    for name, rule in RULES.items():
        plain, private = (_learners(MODELS["MLP-256"], rule, one) for one in (False, True))
        least: dict[str, float] = defaultdict(lambda: math.inf)
        end = time.monotonic() + seconds / len(RULES)
        while time.monotonic() < end:
            with _timed() as times:
                started = time.perf_counter()
                private()
                times["all"] = time.perf_counter() - started
            started = time.perf_counter()
            plain()
            times["undefended"] = time.perf_counter() - started
            for label, took in times.items():
                least[label] = min(least[label], 1000 * took / LEARNERS)
        parts = [least.get(label, 0.0) for label, *_ in STEPS]
        everything, undefended = least["all"], least["undefended"]
        columns = [*parts, everything - sum(parts), everything, everything - least["noise"], undefended]
        shown = " | ".join(f"{one:.2f}" for one in columns)
        ratios = f"{everything / undefended:.1f}, without noise {(everything - least['noise']) / undefended:.1f}"
        print(f"| {name} | {shown} | {ratios} |", flush=True)


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Collect the seconds that each of `STEPS` takes."""
    times: dict[str, float] = defaultdict(float)

    def timed(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                times[label] += time.perf_counter() - started

        return run

    with ExitStack() as stack:
        for label, owner, name in STEPS:
            found = vars(owner)[name]
            wrapped: Any
            if isinstance(found, property):
                assert found.fget is not None
                wrapped = property(timed(label, found.fget))
            elif isinstance(found, classmethod):
                wrapped = classmethod(timed(label, found.__func__))
            else:
                wrapped = timed(label, found)
            stack.enter_context(patch.object(owner, name, wrapped))
        yield times


def _print_numbers() -> None:
    """Print what is least in the nanoseconds of one normal number, in parts that stay in the cache."""
    count = 1 << 16
    words, numbers = np.empty(count + 2, np.uint64), torch.rand(count, dtype=torch.float64)
    signed, half = words[:count].view(np.int64), count // 2
    zeros, room = bytes(8 * count), words.view(np.uint8).data
    chances = torch.rand(half, dtype=torch.float64, generator=keyed_generator("chances"))
    other, rounded = torch.empty(count, dtype=torch.float64), torch.zeros(count)
    gcm, counter, chacha = (
        Cipher(algorithm, mode).encryptor()
        for algorithm, mode in (
            (algorithms.AES(bytes(32)), modes.GCM(bytes(12))),
            (algorithms.AES(bytes(32)), modes.CTR(bytes(16))),
            (algorithms.ChaCha20(bytes(32), bytes(16)), None),
        )
    )
    ways: dict[str, Callable[[], object]] = {
        "key stream, AES-256-GCM": lambda: gcm.update_into(zeros, room),
        "key stream, AES-256-CTR": lambda: counter.update_into(zeros, room),
        "key stream, ChaCha20": lambda: chacha.update_into(zeros, room),
        "uniform numbers": lambda: np.multiply(signed, 2.0**-63, out=numbers.numpy()),
        "logarithm, of half": lambda: torch.log(chances, out=other[:half]),
        "root, of half": lambda: torch.sqrt(chances, out=other[:half]),
        "cosine, of half": lambda: torch.cos(numbers[:half], out=other[:half]),
        "sine, of half": lambda: torch.sin(numbers[:half], out=other[:half]),
        "product": lambda: other.mul_(1.0),
        "widening": lambda: other.copy_(rounded),
        "sum": lambda: torch.add(other, numbers, alpha=0.5, out=other),
        "rounding": lambda: rounded.copy_(other),
    }
    least = _least(ways, 5.0)
    print("\n| step | ns a number |\n|---|---|")
    for label, took in least.items():
        print(f"| {label} | {1e9 * took / count:.2f} |")
    many = {"weights": torch.zeros(256, 784), "others": torch.zeros(1541)}
    took = _least({"": lambda: RandomSource.of(0).noisy_tensors(many, 1.0, 0.1)}, 5.0)[""]
    print(f"| all of it, for the {256 * 784 + 1541} of a mean | {1e9 * took / (256 * 784 + 1541):.2f} |")


if __name__ == "__main__":
    main()
