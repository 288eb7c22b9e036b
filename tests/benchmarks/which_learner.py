"""Which learner holds an image? The span test asks every learner of a round about every image, undefended.

    METALEAK_DATA=../shared/data python tests/benchmarks/which_learner.py --learners 100

A member is attributed to the learner of the highest score (top 1). Whether any learner holds an image is told by the
maximum over learners: against it stand images that nobody holds, under the same maximum. 5-way 5-shot 15-query, MLP
256, round 1; members are query or support images.
"""

import argparse
import json

import torch

from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.span.span_test import span_scores
from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import MNIST, FashionMNIST
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.deploy.assess.truth import ask, inputs
from metaleak.deploy.config.experiment import TargetSettings


def main() -> None:
    """Print a line for each data set and set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, default=100)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--non-members", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(1)
    learners = list(range(given.learners))
    for data in (MNIST(), FashionMNIST()):
        federation = Federation(
            seed=given.seed,
            data=data,
            task=TaskShape(ways=5, shots=5, queries=15),
            partition=Partition(learners=given.learners),
            model=MLP(hidden=(256,)),
            rule=MAML(),
        )
        gradients, _ = cohort_meta_gradients(federation.learners(learners), federation.initial_parameters(), 1)
        for asks in ("query", "support"):
            settings = TargetSettings(members=given.members, non_members=given.non_members)
            truth = ask(federation, learners, 1, asks, settings)
            images = inputs(federation, truth.example).flatten(1)
            highest, named = span_scores(gradients["layer1.weight"], images).max(dim=0)
            right = (named == truth.learner)[truth.member]
            found = evaluate(highest.numpy(), truth.member.numpy(), resamples=200)
            line = {
                "data": type(data).__name__,
                "asks": asks,
                "learners": given.learners,
                "top 1": round(float(right.double().mean()), 4),
                "members": len(right),
                "AUC of the maximum": round(found.auc.value, 4),
                "TPR at 0.1 %": None if (tpr := found.tpr["0.001"]) is None else round(tpr.value, 4),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
