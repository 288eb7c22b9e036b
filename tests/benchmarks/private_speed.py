"""How much longer a record-level learner takes than an undefended one, by model and rule.

    python tests/benchmarks/private_speed.py

5 ways, 5 shots, 15 queries, synthetic images of 28x28; four learners at once undefended, as in a cohort. The two are
timed in turn, in one thread, in processor time, and the least times compared: what else a machine does can only add.
Times of one machine say little, the ratio more. `plain MLP-256` says of its first layer alone that it is dense.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP, Conv4
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML, FedSGD, ReleasedMeans, Reptile, batch_meta_gradients, first_order_maml
from metaleak.defenses import RandomSource, RecordLevel

LEARNERS, WAYS, SHOTS, QUERIES = 4, 5, 5, 15
TURNS = 9


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


def main() -> None:
    """Time every model with every rule, print a row as each is done."""
    torch.set_num_threads(1)
    positions = torch.arange(WAYS)
    batch = Episode(
        torch.rand(LEARNERS, WAYS * SHOTS, 1, 28, 28, generator=keyed_generator("support")),
        positions.repeat_interleave(SHOTS).expand(LEARNERS, -1),
        torch.rand(LEARNERS, WAYS * QUERIES, 1, 28, 28, generator=keyed_generator("query")),
        positions.repeat_interleave(QUERIES).expand(LEARNERS, -1),
    )
    print("| model | rule | undefended, ms a learner | record level, ms | ratio |\n|---|---|---|---|---|")
    for title, model in MODELS.items():
        parameters = model.initialize((1, 28, 28), WAYS, keyed_generator("start"))
        for name, rule in RULES.items():
            mechanism = RecordLevel(noise_multiplier=1.0).for_readings(rule.readings)
            means = [
                ReleasedMeans(mechanism, lambda reading, step, row=row: RandomSource.of(row, reading, step))
                for row in range(LEARNERS)
            ]
            ways: list[Callable[[], object]] = [
                lambda model=model, rule=rule, parameters=parameters: batch_meta_gradients(
                    model, rule, parameters, batch
                ),
                lambda model=model, rule=rule, parameters=parameters, means=means: batch_meta_gradients(
                    model, rule, parameters, batch, means=means
                ),
            ]
            plain, private = _least(ways)
            print(f"| {title} | {name} | {plain:.1f} | {private:.1f} | {private / plain:.1f} |", flush=True)


def _least(ways: list[Callable[[], object]]) -> list[float]:
    """Return the least time of each, in milliseconds a learner."""
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(TURNS + 1):
        for way, times in zip(ways, taken, strict=True):
            started = time.process_time()
            way()
            if turn:
                times.append(1000 * (time.process_time() - started) / LEARNERS)
    return [min(times) for times in taken]


if __name__ == "__main__":
    main()
