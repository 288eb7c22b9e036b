"""What blind source separation finds in the mean over learners, as images and as scores of membership.

    METALEAK_DATA=../shared/data python tests/benchmarks/cocktail_party.py --learners 1 2 3 10 --shots 1 --queries 1
    ... cocktail_party.py --data fashion-mnist --learners 1 2 3 --shots 1 --queries 1
    ... cocktail_party.py --learners 1 2 3 --shots 5 --queries 15 --means 1

5-way tasks, MLP 256, MAML, the initial parameters. One line per number of learners in a mean has the PSNR and the
absolute correlation of every held image with the most similar source, over both sets, and the AUC of the query set's
images against other images of their classes, beside the AUC of the span test on the same gradients. Each number is
the mean over `--means` means of different learners, with the smallest and the largest.
"""

import argparse
import json
import time

import torch

from metaleak.attacks.attack import AsksMembership
from metaleak.attacks.cocktail.cocktail_party import CocktailParty, correlations
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.observation import Observation
from metaleak.attacks.span.span_test import SpanTest
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import MNIST, FashionMNIST
from metaleak.clients.federation import Federation
from metaleak.clients.models import MLP
from metaleak.clients.partition import Partition, TaskShape
from metaleak.clients.rules import MAML
from metaleak.deploy.assess.truth import ask, held_inputs
from metaleak.deploy.config.experiment import TargetSettings


def observe(federation: Federation, learners: list[int]) -> Observation:
    """Return the mean gradient of these learners, a row for each of them."""
    parameters, task = federation.initial_parameters(), federation.task
    gradients, _ = cohort_meta_gradients(federation.learners(learners), parameters, 1)
    count = len(learners)
    return Observation(
        federation.model,
        federation.rule,
        parameters,
        {name: value.mean(dim=0).expand(count, *value.shape[1:]) for name, value in gradients.items()},
        task.ways,
        task.shots,
        task.queries,
        mean_of=count,
        input_shape=federation.examples().input_shape,
    )


def attacked(federation: Federation, learners: list[int], attack: CocktailParty) -> dict[str, float]:
    """Return what the attack finds in the mean over these learners."""
    observation = observe(federation, learners)
    asked = TargetSettings(members=1000, non_members=1000)
    truth = ask(federation, learners, 1, "query", asked)
    targets = truth.targets(federation, learners)
    held = torch.cat([held_inputs(federation, learners, 1, which).flatten(0, 1) for which in ("query", "support")])
    started = time.perf_counter()
    made = attack.reconstruct(observation, seed=0).examples[0]
    seconds = time.perf_counter() - started
    likeness = correlations(held.flatten(1).double(), made.flatten(1).double()).amax(dim=1)
    psnr = torch.from_numpy(similarity("image", made[None].numpy(), held[None].numpy())[0].alike)

    def auc(of: AsksMembership) -> float:
        return evaluate(of(observation, targets, 0).scores.numpy(), truth.member.numpy(), resamples=1).auc.value

    return {
        "PSNR": float(psnr.mean()),
        "above 20 dB": float((psnr > 20).double().mean()),
        "correlation": float(likeness.mean()),
        "AUC": auc(attack),
        "AUC of the span test": auc(SpanTest()),
        "s": seconds,
    }


def main() -> None:
    """Print a JSON line for each number of learners."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("mnist", "fashion-mnist"), default="mnist")
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 2, 3, 10])
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--means", type=int, default=3)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--attack", default="{}", help="settings of the attack, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    attack = CocktailParty(**json.loads(given.attack))
    for count in given.learners:
        federation = Federation(
            seed=given.seed,
            data=MNIST() if given.data == "mnist" else FashionMNIST(),
            task=TaskShape(ways=5, shots=given.shots, queries=given.queries),
            partition=Partition(learners=count * given.means),
            model=MLP(hidden=(256,)),
            rule=MAML(),
        )
        found = [
            attacked(federation, list(range(start, start + count)), attack)
            for start in range(0, count * given.means, count)
        ]
        line = {"data": given.data, "shots": given.shots, "queries": given.queries, "learners": count}
        for name in found[0]:
            values = [one[name] for one in found]
            line[name] = f"{sum(values) / len(values):.3f} ({min(values):.3f}-{max(values):.3f})"
        print(json.dumps({**line, "seed": given.seed, "means": given.means}), flush=True)


if __name__ == "__main__":
    main()
