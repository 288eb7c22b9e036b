"""What record-level privacy costs a federation on text, and what two attacks read of a sentence under it.

    python tests/benchmarks/text_utility.py MODEL_DIRECTORY [--multipliers 0 0.01 0.1 1] [--device cuda]
    python tests/benchmarks/text_utility.py --combine OUTPUT ...

Learners hold one sentence of SST-2 (from METALEAK_DATA) each, and share the gradient of LoRA factors and the
classifier. `record-level` clips it and adds noise before anything reads it; every sentence is used in one round, so
that epsilon is that of one release. The server takes Adam steps with the mean of `--learners` replies a round: the
noise of the mean is drawn at once. Then, at the parameters that were learned so, a reply of each of `--sentences` new
learners is attacked by `text-span`, on the first layer's first factor, and by `text-matching`, on all that is shared,
with known lengths and unknown labels. `--clip 0` is without clipping, and without noise. A line a multiplier:
accuracy and Matthews correlation on sentences that nobody held, and ROUGE-1 without special tokens, 95 % intervals by
bootstrap.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import matthews_corrcoef
from text_components import TEXTS
from text_span import words

from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.observation import Observation
from metaleak.attacks.text.matching.text_matching import TextMatching
from metaleak.attacks.text.span_attack import TextSpan
from metaleak.clients.datasets import SST2
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model, Transformer
from metaleak.clients.rules import FedSGD
from metaleak.clients.rules.released_means import ReleasedMeans
from metaleak.clients.sharing import WithConstants
from metaleak.defenses import RandomSource, RecordLevel
from metaleak.defenses.accounting import gaussian_epsilon

NO_CLIP = 1e6
"""A bound that no gradient reaches."""


def mean_of(
    model: Model,
    parameters: Parameters,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    multiplier: float,
    clip: float,
    *key: int | str,
) -> Parameters:
    """Return what is released of the mean gradient over sentences, each clipped."""
    mechanism = RecordLevel(clip=clip or NO_CLIP, noise_multiplier=multiplier if clip else 0.0)
    means = ReleasedMeans(mechanism, lambda reading, step: RandomSource.of("text utility", *key))
    return means.gradient(model, parameters, frozenset(parameters), tokens, labels, "all")


def learned(
    model: Model,
    parameters: Parameters,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    multiplier: float,
    chosen: argparse.Namespace,
) -> Parameters:
    """Return the parameters after all rounds."""
    moving = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    optimizer = torch.optim.Adam(list(moving.values()), lr=chosen.rate)
    size = chosen.learners
    for number in range(chosen.rounds):
        some = slice(number * size, (number + 1) * size)
        now = {name: value.detach() for name, value in moving.items()}
        # The mean of independent noises is a noise of the mean: it is larger there by the root of their number.
        pooled = multiplier * math.sqrt(size)
        mean = mean_of(model, now, tokens[some], labels[some], pooled, chosen.clip, chosen.seed, number)
        for name, value in moving.items():
            value.grad = mean[name]
        optimizer.step()
    return {name: value.detach() for name, value in moving.items()}


def rouge(model: Transformer, made: torch.Tensor, held: torch.Tensor) -> list[float]:
    """Return ROUGE-1 in percent and its interval."""
    ours, true = (words(model, some) for some in (made, held))
    _, measures = similarity("tokens", ours.numpy(), true.numpy(), padding=model.padding)
    found = next(one for one in measures if one.name == "ROUGE-1")
    return [round(100 * each, 1) for each in (found.value, found.low, found.high)]


def attacked(
    model: Transformer,
    constant: Model,
    parameters: Parameters,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    multiplier: float,
    chosen: argparse.Namespace,
) -> tuple[list[float], list[float]]:
    """Return ROUGE-1 of the exact attack and of the optimization attack, on one reply for each sentence."""
    replies = [
        mean_of(
            constant, parameters, tokens[[row]], labels[[row]], multiplier, chosen.clip, chosen.seed, "attacked", row
        )
        for row in range(len(tokens))
    ]
    stacked = {name: torch.stack([one[name] for one in replies]).detach() for name in parameters}
    held = tokens[:, None]
    seen = Observation(
        model,
        FedSGD(),
        parameters,
        stacked,
        ways=1,
        shots=0,
        queries=1,
        input_shape=tuple(tokens.shape[1:]),
        lengths=(held != model.padding).sum(dim=-1),
    )
    held = held.cpu()
    folder = Path(chosen.data)
    matching = TextMatching(
        labels="unknown",
        steps=chosen.steps,
        candidates=chosen.candidates,
        proposals=chosen.proposals,
        rate=0.03,
        exchanges=chosen.exchanges,
        texts=tuple(folder / name for name in TEXTS),
        memory=chosen.memory,
    )
    try:
        exact = TextSpan().reconstruct(seen.to("cpu"), seed=0).examples
    except ValueError as error:
        print(json.dumps({"refused": str(error)[:120]}), flush=True)
        exact = torch.full_like(held, model.padding)
    return rouge(model, exact, held), rouge(model, matching.reconstruct(seen, seed=0).examples, held)


def table(paths: Sequence[Path]) -> None:
    """Print a Markdown table of the lines in the files."""
    rows = [json.loads(one) for path in paths for one in path.read_text().splitlines() if '"accuracy"' in one]
    print("| epsilon of one release | accuracy, % | Matthews correlation | ROUGE-1, exact | ROUGE-1, matching |")
    print("|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["clip"] > 0, row["multiplier"])):
        value = gaussian_epsilon(row["multiplier"], 1, 1e-5) if row["multiplier"] else None
        epsilon = f"{value:.3g}" if value else "none" if row["clip"] else "none, not clipped"
        texts = [f"{value:.4g} [{low:.4g}, {high:.4g}]" for value, low, high in (row[key] for key in ROW)]
        print(f"| {epsilon} | {' | '.join(texts)} |")


ROW = ("accuracy", "matthews", "exact", "matching")


def scores(
    model: Model, parameters: Parameters, tokens: torch.Tensor, labels: torch.Tensor
) -> tuple[list[float], ...]:
    """Return accuracy in percent and Matthews correlation, each with its interval."""
    with torch.no_grad():
        parts = torch.cat([model(parameters, some) for some in torch.split(tokens, 256)])
    made, true = parts.argmax(dim=1).cpu().numpy(), labels.cpu().numpy()
    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(true), len(true)) for _ in range(500)]
    right = [100 * float((made[one] == true[one]).mean()) for one in drawn]
    related = [float(matthews_corrcoef(true[one], made[one])) for one in drawn]

    def interval(value: float, values: list[float]) -> list[float]:
        return [round(each, 3) for each in (value, *np.quantile(values, [0.025, 0.975]).tolist())]

    return (
        interval(100 * float((made == true).mean()), right),
        interval(float(matthews_corrcoef(true, made)), related),
    )


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", type=Path, nargs="?")
    asked.add_argument("--combine", type=Path, nargs="+")
    asked.add_argument("--multipliers", type=float, nargs="+", default=[0, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1])
    asked.add_argument("--clip", type=float, default=1.0)
    asked.add_argument("--lora", type=int, default=32)
    asked.add_argument("--learners", type=int, default=512)
    asked.add_argument("--rounds", type=int, default=60)
    asked.add_argument("--rate", type=float, default=2e-3)
    asked.add_argument("--sentences", type=int, default=10)
    asked.add_argument("--tested", type=int, default=1000)
    asked.add_argument("--steps", type=int, default=1000)
    asked.add_argument("--candidates", type=int, default=500)
    asked.add_argument("--proposals", type=int, default=200)
    asked.add_argument("--exchanges", type=int, default=20)
    asked.add_argument("--seed", type=int, default=8000)
    asked.add_argument("--length", type=int, default=24)
    asked.add_argument("--device", default="cpu")
    asked.add_argument("--memory", type=float, default=1.0)
    asked.add_argument("--data", type=Path, default=os.environ.get("METALEAK_DATA"))
    chosen = asked.parse_args()
    if chosen.combine:
        table(chosen.combine)
        return
    torch.set_num_threads(1)
    model = Transformer(directory=chosen.model, learns=("classifier.*",), lora=chosen.lora)
    data = SST2(tokenizer=chosen.model, length=chosen.length).load()
    initial = model.initialize((chosen.length,), 2, torch.Generator().manual_seed(0))
    initial = {name: value.to(chosen.device) for name, value in initial.items()}
    constants = {name: value.to(chosen.device) for name, value in model.module.named_parameters()}
    constant = WithConstants(model, {name: value for name, value in constants.items() if name not in initial})
    places = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(chosen.seed))
    training = chosen.rounds * chosen.learners
    kinds = places.split([chosen.tested, chosen.sentences, len(places) - chosen.tested - chosen.sentences])
    tested, target, held = (
        (data.inputs(some).to(chosen.device), data.labels[some].to(chosen.device))
        for some in (*kinds[:2], kinds[2][:training])
    )
    if len(held[0]) < training:
        raise SystemExit(f"needs {training} sentences, and there are {len(held[0])}")
    for multiplier in chosen.multipliers:
        start = time.monotonic()
        parameters = learned(constant, initial, *held, multiplier, chosen)
        accuracy, matthews = scores(constant, parameters, *tested)
        middle = time.monotonic()
        print(
            json.dumps({"multiplier": multiplier, "learned": accuracy, "seconds": round(middle - start)}), flush=True
        )
        exact, matching = attacked(model, constant, parameters, *target, multiplier, chosen)
        row = {
            "multiplier": multiplier,
            "clip": chosen.clip,
            "lora": chosen.lora,
            "accuracy": accuracy,
            "matthews": matthews,
            "exact": exact,
            "matching": matching,
            "seconds": round(time.monotonic() - start),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
