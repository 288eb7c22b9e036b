"""How long the exact attack and the optimization attack take for one sentence, on the same gradient and one core.

    python tests/benchmarks/text_speed.py MODEL_DIRECTORY [--sentences 3]

The gradient of the first layer's query matrix, sentences of CoLA (from METALEAK_DATA), both attacks with their
defaults. A line a sentence, with the seconds of each, their ratio and what was recovered (ROUGE-1 without special
tokens), and then the medians.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from text_components import TEXTS
from text_span import QUERY, batch, observed, words

from metaleak.attacks.evaluation.rouge import rouge_n
from metaleak.attacks.text.matching.language_prior import prior_from
from metaleak.attacks.text.matching.text_matching import TextMatching
from metaleak.attacks.text.span_attack import TextSpan
from metaleak.clients.datasets import CoLA
from metaleak.clients.models import Transformer


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", type=Path)
    asked.add_argument("--sentences", type=int, default=3)
    asked.add_argument("--steps", type=int, default=2000)
    asked.add_argument("--seed", type=int, default=9000)
    asked.add_argument("--length", type=int, default=24)
    asked.add_argument("--data", type=Path, default=os.environ.get("METALEAK_DATA"))
    chosen = asked.parse_args()
    torch.set_num_threads(1)
    model = Transformer(directory=chosen.model)
    data = CoLA(tokenizer=chosen.model, length=chosen.length).load()
    parameters = model.initialize((chosen.length,), 2, torch.Generator().manual_seed(0))
    texts = tuple(Path(chosen.data) / name for name in TEXTS)
    # What is done once, not for a sentence: the language model, and what is kept of the model.
    assert model.tokenizer is not None
    prior_from(texts, model.tokenizer)
    TextSpan().reconstruct(observed(model, parameters, (QUERY.format(0),), *batch(data, 1, chosen.seed)), 0)
    seconds: dict[str, list[float]] = {"exact": [], "matching": []}
    for number in range(chosen.sentences):
        tokens, _ = batch(data, 1, chosen.seed + number)
        observation = observed(model, parameters, (QUERY.format(0),), tokens, torch.zeros(1, dtype=torch.int64))
        size = int((tokens != model.padding).sum())
        observation = replace(observation, lengths=torch.tensor([[size]]))
        matching = TextMatching(steps=chosen.steps, texts=texts)
        row: dict[str, float] = {"tokens": size}
        for name, attack in (("exact", TextSpan()), ("matching", matching)):
            start = time.thread_time()
            made = attack.reconstruct(observation, seed=0).examples[0]
            taken = time.thread_time() - start
            seconds[name].append(taken)
            ours, true = (
                [one for one in words(model, some)[0].tolist() if one != model.padding] for some in (made, tokens)
            )
            row |= {f"{name} s": round(taken, 2), f"{name} ROUGE-1": round(100 * rouge_n(ours, true, 1), 1)}
        print(json.dumps(row | {"factor": round(row["matching s"] / row["exact s"])}), flush=True)
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    print(json.dumps({"median s": medians, "factor": round(medians["matching"] / medians["exact"])}), flush=True)


if __name__ == "__main__":
    main()
