"""Memory and time of the query attack by reconstruction on larger color images, in a process of its own.

    python tests/benchmarks/reconstruction_memory.py [--targets 20] [--downsample max] [--chunk 20]

Conv4-32 on random images, 5-way 1-shot 1-query. Prints the resident set before the attack and at its peak, and the
processor's seconds a step and target. Run it once with the default chunk, which the attack measures, and once with
`--chunk 20`, which computes all targets at once.
"""

import argparse
import resource
import time

import torch

from metaleak.attacks import query_attack
from metaleak.attacks.attack import Targets
from metaleak.attacks.observation import Observation
from metaleak.clients.episode import Episode
from metaleak.clients.models import Conv4
from metaleak.clients.rules import MAML

WAYS, LEARNERS = 5, 10


def observed(model: Conv4, image: tuple[int, int, int], targets: int) -> tuple[Observation, Targets]:
    """Return what learners with random images sent, and `targets` random images to ask about."""
    rule, labels = MAML(inner_rate=0.01), torch.arange(WAYS)
    generator = torch.Generator().manual_seed(0)
    support, query = (torch.rand((LEARNERS, WAYS, *image), generator=generator) for _ in range(2))
    parameters = model.initialize(image, WAYS, generator)
    sent = [
        rule.meta_gradient(model, parameters, Episode(one, labels, other, labels))[0]
        for one, other in zip(support, query, strict=True)
    ]
    gradients = {name: torch.stack([one[name] for one in sent]).detach() for name in parameters}
    asked = Targets(
        torch.rand((targets, *image), generator=generator),
        torch.arange(targets) % LEARNERS,
        torch.arange(targets) % WAYS,
    )
    return Observation(model, rule, parameters, gradients, WAYS, 1, 1), asked


def resident() -> float:
    """Return the largest resident set of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--side", type=int, default=84)
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--downsample", choices=("max", "stride"), default="stride")
    parser.add_argument("--chunk", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = Conv4(filters=asked.filters, downsample=asked.downsample)
    observation, targets = observed(model, (3, asked.side, asked.side), asked.targets)
    before, started = resident(), time.process_time()
    chunk = {} if asked.chunk is None else {"chunk": asked.chunk}
    query_attack(fit=0, iterations=asked.steps, decision="distance", **chunk)(observation, targets, 1)
    each = (time.process_time() - started) / asked.steps / asked.targets
    print(f"resident {before:.2f} GiB before, {resident():.2f} GiB at the peak; {each:.2f} s a step and target")


if __name__ == "__main__":
    main()
