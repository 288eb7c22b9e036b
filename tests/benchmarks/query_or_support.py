"""Which of its learner's two sets is an image in? For images that learners hold, in one round.

    METALEAK_DATA=../shared/data python tests/benchmarks/query_or_support.py --learners 20 [--noise shared:4]

5-way 5-shot 15-query, MLP 256, round 1, MNIST and Fashion-MNIST. A line a data set: the part of images whose set is
named rightly (top 1), that part in each set, and the AUC of the log odds, query images above support images. A
constant guess is right for 75 %.
"""

import argparse
import json

import torch

from metaleak.attacks.attack import Targets
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.observation import Observation
from metaleak.attacks.span.query_or_support import query_or_support
from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import MNIST, FashionMNIST
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.defenses import Noise
from metaleak.deploy.assess.truth import held_inputs, inputs


def main() -> None:
    """Print a line for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, default=20)
    parser.add_argument("--noise", default="", help="place:scale")
    parser.add_argument("--seed", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(1)
    place, _, scale = given.noise.partition(":")
    learners = list(range(given.learners))
    for data in (MNIST(), FashionMNIST()):
        federation = Federation(
            seed=given.seed,
            data=data,
            task=TaskShape(ways=5, shots=5, queries=15),
            partition=Partition(learners=given.learners),
            model=MLP(hidden=(256,)),
            rule=MAML(),
            defenses=(Noise(place=place, scale=float(scale)),) if place else (),
        )
        parameters, own = federation.initial_parameters(), federation.split().held_out
        gradients, _ = cohort_meta_gradients(federation.learners(learners), parameters, 1)
        observation = Observation(
            federation.model,
            federation.rule,
            parameters,
            gradients,
            ways=5,
            shots=5,
            queries=15,
            own_examples=inputs(federation, own),
            own_labels=federation.examples().labels[own],
            defenses=federation.defenses,
        )
        query, support = (_held(federation, learners, which) for which in ("query", "support"))
        odds = query_or_support(observation, query.and_then(support), seed=0)
        is_query = torch.arange(len(odds)) < len(query.rows)
        right = (odds > 0) == is_query
        found = evaluate(odds.numpy(), is_query.numpy(), groups=torch.cat([query.rows, support.rows]).numpy())
        line = {
            "data": type(data).__name__,
            "noise": given.noise,
            "learners": given.learners,
            "seed": given.seed,
            "top 1": round(float(right.double().mean()), 4),
            "of query images": round(float(right[is_query].double().mean()), 4),
            "of support images": round(float(right[~is_query].double().mean()), 4),
            "AUC": f"{found.auc.value:.3f} ({found.auc.low:.3f}-{found.auc.high:.3f})",
            "images": len(odds),
        }
        print(json.dumps(line), flush=True)


def _held(federation: Federation, learners: list[int], which: str) -> Targets:
    """Return the questions about all images of one set of every learner."""
    images = held_inputs(federation, learners, 1, which)
    count, each = images.shape[:2]
    ways = federation.task.ways
    return Targets(
        images.flatten(0, 1),
        torch.arange(count).repeat_interleave(each),
        torch.arange(ways).repeat_interleave(each // ways).repeat(count),
    )


if __name__ == "__main__":
    main()
