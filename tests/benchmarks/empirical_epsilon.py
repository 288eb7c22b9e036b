"""Is the Gaussian mechanism as private as it promises? The strongest adversary's bounds and the accounted epsilon.

    python tests/benchmarks/empirical_epsilon.py                # MLP and Conv4, 2-way, 1-shot 1-query
    python tests/benchmarks/empirical_epsilon.py --models mlp --epsilons --scales 1 10 100

The adversary is the one of the definition of differential privacy (`LikelihoodRatio`): it knows everything but which
of two images of one class a learner holds. One release, MNIST (its folder is named by METALEAK_DATA), an untrained
network, one target a learner, so that all targets are independent; the clipping norm is the median norm of the
meta-gradients. Every bound is at 95 % confidence:

- `bound`: of any mechanism, from all targets; `share` is its part of the accounted epsilon, which it must not exceed.
- `canaries`: of the third of the targets whose two candidates move the meta-gradient most, in the noise's deviations.
  They are chosen without a look at what was sent: worst cases among natural images.
- `gaussian`: of a mechanism known to be Gaussian, sharper, and not above the accounted epsilon either. `one run`: by
  Steinke et al. 2023.
- `separation`: the median distance of the two candidates in deviations; `most` is what the mechanism allows.

`--scales` measures the `noise` strategy (relative to the gradient's own root mean square), which promises nothing.
Exits with 1 when a bound exceeds the accounted epsilon.
"""

import argparse
import json
import time
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from metaleak.attacks.evaluation.empirical_epsilon import (
    epsilon_lower_bound,
    gaussian_epsilon_lower_bound,
    one_run_lower_bound,
)
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.likelihood_ratio import LikelihoodRatio
from metaleak.attacks.observation import Observation
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.episode import Parameters
from metaleak.clients.federation import Federation
from metaleak.defenses import GaussianMechanism, Noise
from metaleak.deploy.assess.truth import Truth, ask, held_inputs, rest_of_sets
from metaleak.deploy.config.experiment import TargetSettings
from metaleak.deploy.config.reading import experiment_from

DELTA = 1e-5
MODELS: dict[str, dict[str, Any]] = {"mlp": {"name": "mlp"}, "conv4": {"name": "conv4", "normalization": "none"}}
TOGETHER = 500


def main() -> None:
    """Measure every cell, print a row as each is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--ways", type=int, default=2)
    parser.add_argument("--learners", type=int, default=6000)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[1.0, 4.0, 8.0, 16.0])
    parser.add_argument("--scales", type=float, nargs="*", default=[])
    parser.add_argument("--asks", nargs="+", choices=["query", "support"], default=["query", "support"])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for model in given.models:
        federation = experiment_from(
            {
                "data": {"name": "mnist"},
                "task": {"ways": given.ways},
                "partition": {"learners": given.learners},
                "model": MODELS[model],
                "attacks": [],
            },
            "benchmark",
        ).federation()
        clip = _median_norm(federation)
        laws: list[GaussianMechanism | Noise] = [
            *(GaussianMechanism(clip=clip, epsilon=epsilon, releases=1) for epsilon in given.epsilons),
            *(Noise(scale=scale) for scale in given.scales),
        ]
        for law in laws:
            for asks in given.asks:
                row = {"model": model, "ways": given.ways, "asks": asks, "clip": f"{clip:.2f}"}
                row |= _cell(replace(federation, defenses=(law,)), law, asks)
                rows.append(row)
                if not given.json:
                    _show(row, header=len(rows) == 1)
    if given.json:
        print(json.dumps(rows, indent=2))
    guaranteed = [row for row in rows if row["accounted"] is not None]
    if any(max(row["bound"], row["gaussian"]) > row["accounted"] for row in guaranteed):
        raise SystemExit("a lower bound exceeds the accounted epsilon: a bug")


def _cell(
    federation: Federation, law: GaussianMechanism | Noise, asks: Literal["query", "support"]
) -> dict[str, Any]:
    started = time.monotonic()
    truth = _one_target_each(federation, asks)
    scores, apart = _attacked(federation, truth, asks)
    member = truth.member
    accounted = law.epsilon_after(1) if isinstance(law, GaussianMechanism) else None
    exposed = apart >= apart.quantile(2 / 3)
    own, known = scores.numpy(), member.numpy()
    auc = evaluate(own, known, resamples=200).auc
    bound = epsilon_lower_bound(own, known, delta=DELTA)
    return {
        "defense": f"epsilon {law.epsilon:g}" if isinstance(law, GaussianMechanism) else f"noise {law.scale:g}",
        "members": int(member.sum()),
        "non-members": int((~member).sum()),
        "AUC": f"{auc.value:.3f} ({auc.low:.3f}-{auc.high:.3f})",
        "accounted": accounted,
        "bound": bound,
        "share": None if accounted is None else bound / accounted,
        "canaries": epsilon_lower_bound(own[exposed.numpy()], known[exposed.numpy()], delta=DELTA),
        "gaussian": gaussian_epsilon_lower_bound(own, known, delta=DELTA) if accounted is not None else None,
        "one run": one_run_lower_bound(own, known, delta=DELTA),
        "separation": float(apart.median()),
        "most": 1 / law.multiplier if isinstance(law, GaussianMechanism) else None,
        "seconds": round(time.monotonic() - started),
    }


def _one_target_each(federation: Federation, asks: Literal["query", "support"]) -> Truth:
    """Return one target of each learner, in turn a member and a non-member."""
    learners = list(range(federation.partition.learners))
    truth = ask(federation, learners, 1, asks, TargetSettings(members=10**6, non_members=10**6))
    wanted: dict[int, int] = {}
    for place, (learner, member) in enumerate(zip(truth.learner.tolist(), truth.member.tolist(), strict=True)):
        if member == (learner % 2 == 0):
            wanted.setdefault(learner, place)
    chosen = torch.tensor([wanted[learner] for learner in sorted(wanted)])
    return Truth(**{name: value[chosen] for name, value in vars(truth).items()})


def _attacked(federation: Federation, truth: Truth, asks: Literal["query", "support"]) -> tuple[Tensor, Tensor]:
    """Return the score and the separation of every target; its learners send one defended meta-gradient each."""
    parameters, task = federation.initial_parameters(), federation.task
    attack = LikelihoodRatio(asks=asks)
    parts = []
    for start in range(0, len(truth.learner), TOGETHER):
        part = Truth(**{name: value[start : start + TOGETHER] for name, value in vars(truth).items()})
        learners = part.learner.tolist()
        known = held_inputs(federation, learners, 1, "support" if asks == "query" else "query")
        observation = Observation(
            federation.model,
            federation.rule,
            parameters,
            cohort_meta_gradients(federation.learners(learners), parameters, 1)[0],
            task.ways,
            task.shots,
            task.queries,
            known_support=known if asks == "query" else None,
            known_query=known if asks == "support" else None,
            defenses=federation.defenses,
            rest=rest_of_sets(federation, part, 1, asks),
        )
        answers = attack(observation, part.targets(federation, learners), seed=0)
        parts.append((answers.scores, answers.statistics["separation"]))
    return torch.cat([scores for scores, _ in parts]), torch.cat([apart for _, apart in parts])


def _median_norm(federation: Federation) -> float:
    some = federation.learners(range(200))
    gradients: Parameters = cohort_meta_gradients(some, federation.initial_parameters(), 1)[0]
    norms = torch.cat([value.flatten(1) for value in gradients.values()], dim=1).norm(dim=1)
    return round(float(norms.median()), 2)


def _show(row: dict[str, Any], header: bool) -> None:
    if header:
        print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
    cells = (
        "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()
    )
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
