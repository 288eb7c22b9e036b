"""What gradient alignment finds in convolutional networks: members of the query or support set against non-members.

    METALEAK_DATA=../shared/data python tests/benchmarks/alignment_quality.py conv4-none --asks query
    ... alignment_quality.py conv4-batch --rounds 20 --learners 20 --members 300 --non-members 900
    ... alignment_quality.py lenet --asks support --set knows=other
    ... alignment_quality.py conv4-none --variant online --learners 10 --members 200 --non-members 200

Learners with MNIST or Fashion-MNIST (`--data`) are simulated without Flower. With several rounds the parameters are
trained by Adam, and the scores of a target are added. `--variant` uses per-target distributions instead of the pooled
discriminant. `--defense place=shared,scale=1` adds noise. Intervals are 95 %, with learners resampled.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
import yaml
from measuring import show

from metaleak.attacks.alignment.alignment import Alignment
from metaleak.attacks.alignment.per_example import PerExampleAlignment
from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.observation import Observation
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import MNIST, FashionMNIST
from metaleak.clients.episode import Parameters
from metaleak.clients.federation import Federation
from metaleak.clients.models import Conv4, LeNet, Model
from metaleak.clients.partition import Partition, TaskShape
from metaleak.clients.rules import MAML
from metaleak.defenses import Noise
from metaleak.deploy.assess.truth import ask, held_classes, held_inputs, inputs
from metaleak.deploy.config.experiment import TargetSettings
from metaleak.server.learning.optimizer import OuterOptimizer

LARGE, SMALL = TaskShape(ways=5, shots=5, queries=15), TaskShape(ways=5, shots=1, queries=1)
CASES: dict[str, tuple[Model, TaskShape, float]] = {
    "conv4-none": (Conv4(normalization="none"), LARGE, 0.4),
    "conv4-batch": (Conv4(normalization="batch"), LARGE, 0.4),
    "conv4-group": (Conv4(normalization="group"), LARGE, 0.4),
    "lenet": (LeNet(), SMALL, 0.01),
    "lenet-small-start": (LeNet(weight_bound=None), SMALL, 0.01),
}


def observe(
    federation: Federation, attack: Alignment | PerExampleAlignment, parameters: Parameters, round: int
) -> Observation:
    """Return what the server sees in `round`, and what the attack requires."""
    learners = list(range(federation.partition.learners))
    gradients, _ = cohort_meta_gradients(federation.learners(learners), parameters, round, chunk=4)
    own, task = federation.split().held_out, federation.task
    seen = Observation(
        federation.model,
        federation.rule,
        parameters,
        gradients,
        task.ways,
        task.shots,
        task.queries,
        classes=held_classes(federation, learners, round),
        own_examples=inputs(federation, own),
        own_labels=federation.examples().labels[own],
        defenses=federation.defenses if "defenses" in attack.requires else None,
    )
    if "other set" not in attack.requires:
        return seen
    if attack.asks == "query":
        return replace(seen, known_support=held_inputs(federation, learners, round, "support"))
    return replace(seen, known_query=held_inputs(federation, learners, round, "query"))


def main() -> None:
    """Attack and print, a line after every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--asks", choices=("query", "support"), default="query")
    parser.add_argument("--data", choices=("mnist", "fashion-mnist"), default="mnist")
    parser.add_argument("--learners", type=int, default=80)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--non-members", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--variant", choices=("pooled", "online", "offline", "learners"), default="pooled")
    parser.add_argument("--defense", default="")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, task, rate = CASES[given.case]
    settings = pairs(given.set)
    attack: Alignment | PerExampleAlignment
    if given.variant == "pooled":
        attack = Alignment(asks=given.asks, **settings)
    else:
        attack = PerExampleAlignment(asks=given.asks, variant=given.variant, **settings)
    noise = {
        key: yaml.safe_load(value) for key, _, value in (p.partition("=") for p in given.defense.split(",") if p)
    }
    federation = Federation(
        seed=given.seed,
        data=MNIST() if given.data == "mnist" else FashionMNIST(),
        task=task,
        partition=Partition(learners=given.learners),
        model=model,
        rule=MAML(inner_rate=rate),
        defenses=(Noise(**noise),) if noise else (),
    )
    learners = list(range(given.learners))
    asked = TargetSettings(members=given.members, non_members=given.non_members)
    truth = ask(federation, learners, 1, attack.asks, asked)
    targets = truth.targets(federation, learners)
    training = OuterOptimizer(rate=0.003).over(federation.initial_parameters())
    total = torch.zeros(len(targets.rows), dtype=torch.float64)
    rows = []
    for number in range(1, given.rounds + 1):
        observation = observe(federation, attack, training.parameters, number)
        started = time.perf_counter()
        total += attack(observation, targets, seed=number).scores
        seconds = time.perf_counter() - started
        training.step({name: value.mean(dim=0).numpy() for name, value in observation.gradients.items()})
        found = evaluate(total.numpy(), truth.member.numpy(), groups=truth.learner.numpy(), resamples=200)
        rows.append(
            {
                "case": given.case,
                "data": given.data,
                "asks": given.asks,
                "variant": given.variant,
                "knows": attack.knows,
                "seed": given.seed,
                "defense": given.defense,
                "rounds": number,
                "members": found.members,
                "non-members": found.non_members,
                "AUC": _text(found.auc),
                "TPR at 1 %": _text(found.tpr["0.01"]),
                "TPR at 0.1 %": _text(found.tpr["0.001"]),
                "s": round(seconds, 1),
            }
        )
        if number in (1, given.rounds) or number % 5 == 0:
            show(rows[-1:], given.json)


def pairs(texts: list[str]) -> dict[str, Any]:
    """Return texts such as `knows=other` as settings."""
    return {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in texts)}


def _text(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


if __name__ == "__main__":
    main()
