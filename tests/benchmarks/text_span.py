"""How much of private sentences the exact attack finds in one matrix of a transformer, or in two.

    python tests/benchmarks/text_span.py MODEL_DIRECTORY [--batches 100] [--sizes 1 2 4] [--uses "one matrix"]
        [--lora 16] [--dropout] ...

For each data set (from METALEAK_DATA), number of sentences and seed: a batch of sentences, the gradient of its mean
loss in float32, the attack, and ROUGE of what it finds, sentences paired with the true ones; special tokens do not
count. A line a cell, with 95 % intervals (bootstrap over batches), how many sentences the attack was sure of, and
seconds of one core. A Markdown table.

`--lora` shares the first factor of an adapter of that rank in place of the matrix itself; second factors, which are 0
before training, are drawn with a deviation of 0.01. `--dropout` computes gradients in the model's training mode.
"""

import argparse
import time
from pathlib import Path

import torch

from metaleak.attacks.attack import Reconstructions
from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.observation import Observation
from metaleak.attacks.text.input_space import NothingShown
from metaleak.attacks.text.span_attack import TextSpan
from metaleak.clients.datasets import SST2, CoLA, DataSet, LabeledExamples, RottenTomatoes
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Transformer
from metaleak.clients.rules import FedSGD
from metaleak.clients.sharing import computed_part

ADAPTER = "bert.encoder.layer.0.attention.self.query.lora_a"
QUERY = "bert.encoder.layer.{}.attention.self.query.weight"
USES = {
    "one matrix": (QUERY.format(0),),
    "two matrices": (QUERY.format(0), QUERY.format(1)),
    "embeddings": (QUERY.format(0), "bert.embeddings.word_embeddings.weight"),
}
KINDS: dict[str, type[CoLA] | type[SST2] | type[RottenTomatoes]] = {
    "cola": CoLA,
    "sst2": SST2,
    "rotten-tomatoes": RottenTomatoes,
}


def batch(data: LabeledExamples, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `size` sentences `(B, T)`, drawn by the seed, and their labels."""
    places = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))[:size]
    return data.inputs(places), data.labels[places]


def observed(
    model: Transformer,
    parameters: Parameters,
    shares: tuple[str, ...],
    tokens: torch.Tensor,
    labels: torch.Tensor,
    dropout: bool = False,
) -> Observation:
    """Return what the server sees of one learner that shares the gradient of these sentences."""
    rule = FedSGD()
    computing, moving = computed_part(shares, model, rule, parameters)
    model.module.train(dropout)
    try:
        gradient, _ = rule.meta_gradient(computing, moving, Episode(tokens, labels, tokens[:0], labels[:0]))
    finally:
        model.module.eval()
    stacked = {name: gradient[name].detach()[None] for name in shares}
    # One way of as many queries: the number of sentences is all that counts.
    return Observation(
        model, rule, parameters, stacked, ways=1, shots=0, queries=len(tokens), input_shape=tuple(tokens.shape[1:])
    )


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", type=Path)
    asked.add_argument("--batches", type=int, default=100)
    asked.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    asked.add_argument("--uses", choices=[*USES], default="one matrix")
    asked.add_argument("--data", choices=[*KINDS], nargs="+", default=[*KINDS])
    asked.add_argument("--length", type=int, default=64)
    asked.add_argument("--seed", type=int, default=1000)
    asked.add_argument("--lora", type=int)
    asked.add_argument("--dropout", action="store_true")
    chosen = asked.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model, shares = Transformer(directory=chosen.model), USES[chosen.uses]
    if chosen.lora:
        model = Transformer(directory=chosen.model, learns=("classifier.*",), lora=chosen.lora)
        shares = (ADAPTER,)
    parameters = model.initialize((chosen.length,), 2, generator)
    for name, value in parameters.items():
        if name.endswith(".lora_b"):
            value.normal_(std=0.01, generator=generator)
    part = sum(parameters[name].numel() for name in shares) / sum(one.numel() for one in parameters.values())
    print(f"{chosen.uses}: {100 * part:.2f} % of the parameters, seeds from {chosen.seed}\n")
    print("| data | sentences | batches | ROUGE-1 | ROUGE-2 | exact | sure | sure and wrong | median s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in chosen.data:
        source: DataSet = KINDS[name](tokenizer=chosen.model, length=chosen.length)
        data = source.load()
        for size in chosen.sizes:
            attack = TextSpan(uses=chosen.uses)
            row(name, model, parameters, shares, data, size, chosen.batches, chosen.seed, attack, chosen.dropout)


def words(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """Return `tokens` with padding in the place of special ones."""
    special = (tokens == model.begin) | (tokens == model.end)
    return tokens.masked_fill(special, model.padding)


def row(
    name: str,
    model: Transformer,
    parameters: Parameters,
    shares: tuple[str, ...],
    data: LabeledExamples,
    size: int,
    batches: int,
    seed: int,
    attack: TextSpan,
    dropout: bool,
) -> None:
    """Print the line of a cell."""
    made, held, sure, seconds = [], [], [], []
    for number in range(batches):
        tokens, labels = batch(data, size, seed + number)
        torch.manual_seed(seed + number)
        observation = observed(model, parameters, shares, tokens, labels, dropout)
        start = time.thread_time()
        try:
            found = attack.reconstruct(observation, seed=0)
        except NothingShown:
            found = Reconstructions(torch.full_like(tokens, model.padding)[None], torch.zeros(1, size))
        seconds.append(time.thread_time() - start)
        made.append(found.examples[0])
        held.append(tokens)
        sure.append(found.confidence[0] > 0.9)
    ours, true = (words(model, torch.stack(some)) for some in (made, held))
    certain = torch.stack(sure)
    _, measures = similarity("tokens", ours.numpy(), true.numpy(), padding=model.padding)
    value = {one.name: f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in measures}
    right = (ours[:, :, None] == true[:, None]).all(dim=-1).any(dim=-1)
    wrong = int((certain & ~right).sum())
    median = sorted(seconds)[len(seconds) // 2]
    cells = [value["ROUGE-1"], value["ROUGE-2"], value["sequences recovered"]]
    print(
        f"| {name} | {size} | {batches} | {' | '.join(cells)} | {100 * certain.double().mean():.1f} | {wrong} "
        f"| {median:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
