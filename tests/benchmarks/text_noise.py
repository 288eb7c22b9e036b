"""What the exact attack finds of one sentence in one matrix under the Gaussian mechanism, against epsilon.

    python tests/benchmarks/text_noise.py MODEL_DIRECTORY [--sentences 20]

Sentences of CoLA (from METALEAK_DATA), one a batch; the gradient of the first layer's query matrix is clipped and
noised by the defense `gaussian` before the attack reads it; epsilon is that of one release at delta 1e-5. A Markdown
table, 95 % intervals by bootstrap over sentences; special tokens do not count.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from text_span import QUERY, batch, observed, words

from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.text.span_attack import TextSpan
from metaleak.clients.datasets import CoLA
from metaleak.clients.models import Transformer
from metaleak.defenses import GaussianMechanism, RandomSource

MULTIPLIERS = (0.0, 1e-9, 1e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-2, 1.0)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", type=Path)
    asked.add_argument("--sentences", type=int, default=20)
    asked.add_argument("--seed", type=int, default=3000)
    chosen = asked.parse_args()
    torch.set_num_threads(1)
    model = Transformer(directory=chosen.model)
    data = CoLA(tokenizer=chosen.model, length=24).load()
    parameters = model.initialize((24,), 2, torch.Generator().manual_seed(0))
    name = QUERY.format(0)
    print("| epsilon | noise over gradient | ROUGE-1 | ROUGE-2 | exact |")
    print("|---|---|---|---|---|")
    for multiplier in MULTIPLIERS:
        made, held, parts = [], [], []
        epsilon = "none"
        for number in range(chosen.sentences):
            tokens, labels = batch(data, 1, chosen.seed + number)
            observation = observed(model, parameters, (name,), tokens, labels)
            gradient = observation.gradients[name][0]
            if multiplier:
                clip = float(gradient.norm())
                defense = GaussianMechanism(clip=clip, noise_multiplier=multiplier)
                epsilon = f"{defense.epsilon_after(1):.3g}"
                noised = defense({name: gradient}, RandomSource.of(0, number))[name]
                parts.append(float((noised - gradient).norm() / gradient.norm()))
                observation = replace(observation, gradients={name: noised[None]})
            made.append(TextSpan().reconstruct(observation, seed=0).examples[0])
            held.append(tokens)
        ours, true = (words(model, torch.stack(some)) for some in (made, held))
        _, measures = similarity("tokens", ours.numpy(), true.numpy(), padding=model.padding)
        value = {one.name: f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in measures}
        noise = f"{sum(parts) / len(parts):.2g}" if parts else "0"
        cells = [value["ROUGE-1"], value["ROUGE-2"], value["sequences recovered"]]
        print(f"| {epsilon} | {noise} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
