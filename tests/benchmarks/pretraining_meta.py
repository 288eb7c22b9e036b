"""What a personal model reveals about the images behind its meta-trained start: a table of docs/pretraining.md.

    python tests/benchmarks/pretraining_meta.py --seeds 11 12 13 > lines.jsonl
    python tests/benchmarks/pretraining_tables.py --combine lines.jsonl

100 learners hold 1 000 of 2 000 images of Fashion-MNIST, 14x14, and train an MLP by MAML, 5-way 1-shot 1-query. 33
such federations, each dealt anew, are attacked in turn: a learner that took no part adapts the initialization to its
own support set and publishes the predictions of what results. `--data cifar10` with `--examples 10000 --shots 5
--queries 5` makes it larger, for a GPU.
"""

import argparse
import json
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.pretraining.evidence import log_odds
from metaleak.attacks.pretraining.gaussian_ratio import gaussian_ratio
from metaleak.attacks.pretraining.query import QueryResult, ask
from metaleak.clients.datasets import CIFAR10, DataSet, FashionMNIST, LabeledExamples
from metaleak.clients.episode import Episode
from metaleak.clients.federation import Federation
from metaleak.clients.models import MLP
from metaleak.clients.partition import Partition, TaskShape
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import MAML, batch_meta_gradients
from metaleak.clients.shard import episodes
from metaleak.deploy.pretraining.finetuning import ReleasedModel

RULE = MAML(inner_steps=1, inner_rate=0.1)
POINTS = 1000
OUTER_RATE = 0.001


@dataclass(frozen=True)
class Some:
    """The first `examples` images of a data set, at 1 / `smaller` of their sides."""

    data: DataSet
    examples: int
    smaller: int

    def load(self) -> LabeledExamples:
        whole = self.data.load()
        images = F.avg_pool2d(whole.examples[: self.examples].float(), self.smaller).round().to(torch.uint8)
        return LabeledExamples(images, whole.labels[: self.examples], whole.classes)


def federation(seed: int, number: int, given: argparse.Namespace) -> Federation:
    return Federation(
        seed=1_000_000 * seed + number,
        data=Some(CIFAR10() if given.data == "cifar10" else FashionMNIST(), given.examples, given.smaller),
        task=TaskShape(ways=5, shots=given.shots, queries=given.queries),
        partition=Partition(learners=given.learners, held_out=0.1, non_members=0.3),
        model=MLP(hidden=(given.width,)),
        rule=RULE,
    )


def trained(federation: Federation, rounds: tuple[int, ...], device: torch.device, chunk: int):
    """Yield the initialization after each of `rounds`: every learner answers in each, with the same episode."""
    learners = federation.learners(range(federation.partition.learners))
    batch = Episode(
        *(part.to(device) for part in episodes(federation.examples(), [one.drawn(1) for one in learners]))
    )
    leaves = {name: value.to(device).requires_grad_() for name, value in federation.initial_parameters().items()}
    optimizer = torch.optim.Adam(leaves.values(), OUTER_RATE)
    for round in range(1, rounds[-1] + 1):
        parameters = {name: value.detach() for name, value in leaves.items()}
        for begin in range(0, len(learners), chunk):
            some = Episode(*(part[begin : begin + chunk] for part in batch))
            gradients, _ = batch_meta_gradients(federation.model, RULE, parameters, some)
            for name, leaf in leaves.items():
                share = gradients[name].sum(0) / len(learners)
                leaf.grad = share if begin == 0 else leaf.grad + share
        optimizer.step()
        if round in rounds:
            yield round, {name: value.detach().clone() for name, value in leaves.items()}


def members(federation: Federation) -> torch.Tensor:
    """Which images stand in any learner's support or query set, `(N,)`."""
    inside = torch.zeros(len(federation.examples().labels), dtype=torch.bool)
    for learner in federation.learners(range(federation.partition.learners)):
        drawn = learner.drawn(1)
        inside[drawn.support.flatten()] = inside[drawn.query.flatten()] = True
    return inside


def adapted(federation, parameters, classes, key, shots, steps):
    """Return the personal model of a new learner of these classes, whose images are held out of the federation."""
    data, generator = federation.examples(), keyed_generator(federation.seed, "new learner", *key)
    held = federation.split().held_out
    support = []
    for one in classes:
        own = held[data.labels[held] == one]
        support.append(own[torch.randperm(len(own), generator=generator)[:shots]])
    device = next(iter(parameters.values())).device
    inputs = data.inputs(torch.cat(support)).to(device)
    labels = torch.arange(len(classes), device=device).repeat_interleave(shots)
    episode = Episode(inputs, labels, inputs, labels)
    rule = RULE.model_copy(update={"inner_steps": steps})
    personal = rule.adapt(federation.model, parameters, episode)
    return ReleasedModel(federation.model, {name: value.detach() for name, value in personal.items()})


def answers(federation, parameters, points, given):
    """Return what personal models answer about `points`, `(R, P, 5)`, and the ceiling's `(P, 5)`, log odds."""
    data = federation.examples()
    inputs, labels = data.inputs(points), data.labels[points]
    found = []
    for release in range(given.releases):
        classes = torch.randperm(10, generator=keyed_generator("classes", release))[:5].tolist()
        model = adapted(federation, parameters, classes, (release,), given.support, given.steps)
        asked: QueryResult = ask(model, inputs, 5, at_once=1000)
        found.append(log_odds(asked.probabilities))
    ceiling = torch.zeros(len(points), 5, dtype=torch.float64)
    for half in (0, 5):
        for turn in range(5):
            classes = [half + (turn + place) % 5 for place in range(5)]
            model = adapted(federation, parameters, classes, ("ceiling", half), given.support, given.steps)
            odds = log_odds(model.predict(inputs))
            mine = torch.nonzero((labels >= half) & (labels < half + 5)).flatten()
            ceiling[mine, turn] = odds[mine, (labels[mine] - half - turn) % 5]
    return torch.stack(found), ceiling


def accuracy(federation, parameters, given) -> float:
    """Return a personal model's accuracy on the federation's non-members of its classes."""
    data, outside = federation.examples(), federation.split().non_members
    classes = [0, 1, 2, 3, 4]
    model = adapted(federation, parameters, classes, ("accuracy",), given.support, given.steps)
    own = outside[data.labels[outside] < 5][:1000]
    return float((model.predict(data.inputs(own)).argmax(1) == data.labels[own]).double().mean())


def scored(features, member, shrunken=True):
    """Return the scores `(V, P)` of every federation, with all others as its shadows; features `(S, P, D)`."""
    rows = torch.arange(len(features))
    return torch.stack(
        [
            gaussian_ratio(features[rows != victim], member[rows != victim], features[victim], shrunken)
            for victim in range(len(features))
        ]
    )


def main(given: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds = tuple(sorted(given.rounds))
    for seed in given.seeds:
        began = time.monotonic()
        asked: dict[int, list] = {round: [] for round in rounds}
        inside = []
        points = torch.randperm(given.examples, generator=keyed_generator(seed, "points"))[:POINTS].sort().values
        for number in range(given.federations):
            one = federation(seed, number, given)
            inside.append(members(one)[points])
            for round, parameters in trained(one, rounds, device, given.chunk):
                asked[round].append((*answers(one, parameters, points, given), accuracy(one, parameters, given)))
        member = torch.stack(inside)
        for round in rounds:
            released = torch.stack([one[0] for one in asked[round]])
            ceiling = torch.stack([one[1] for one in asked[round]])
            right = float(np.mean([one[2] for one in asked[round]]))
            for attack, features in (
                ("Gaussian ratio, 1 personal model", released[:, 0]),
                (f"Gaussian ratio, {given.releases} personal models", released.permute(0, 2, 1, 3).flatten(2)),
                ("white-box ceiling", ceiling),
            ):
                scores = scored(features, member)
                found = evaluate(
                    scores.flatten().numpy(),
                    member.flatten().numpy(),
                    groups=points.repeat(len(scores)).numpy(),
                    crossed=torch.arange(len(scores)).repeat_interleave(POINTS).numpy(),
                    resamples=100,
                )
                told = {
                    "group": "meta",
                    "case": f"{given.learners} learners, width {given.width}, {round} rounds, {given.support} shots, "
                    f"{given.steps} steps",
                    "attack": attack,
                    "seed": seed,
                    "auc": found.auc.model_dump(),
                    "tpr": found.tpr["0.01"].model_dump(),
                    "targets": found.members + found.non_members,
                    "members": found.members,
                    "downstream": right,
                    "start": float("nan"),
                    "start_outside": float("nan"),
                    "seconds": round_seconds(began),
                    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
                }
                print(json.dumps(told), flush=True)


def round_seconds(began: float) -> float:
    return round(time.monotonic() - began, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11])
    parser.add_argument("--rounds", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--federations", type=int, default=33)
    parser.add_argument("--learners", type=int, default=100)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--data", choices=["fashion-mnist", "cifar10"], default="fashion-mnist")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--smaller", type=int, default=2)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--support", type=int, default=5, help="images a class of the new learner")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--releases", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=100)
    main(parser.parse_args())
