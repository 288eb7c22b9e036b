"""Which support and query tokens a transformer's meta-gradient gives away, in one query matrix of the first layer.

    python tests/benchmarks/text_meta_gradients.py MODEL_DIRECTORY [--episodes 10]

Tasks of two ways, one shot and one query of CoLA (from METALEAK_DATA); what is shared is float32. For every rule the
part of the pairs (token, place) of each set that lie in the space of the matrix's gradient, and how many others do,
by the noise that is estimated from the gradient alone. Where the embeddings adapt, query tokens are tried at the sent
and at the adapted parameters, which are computed from the true support sentences. A Markdown table.
"""

import argparse
import time
from pathlib import Path

import torch
from text_span import QUERY, batch

from metaleak.attacks.text.span_attack import candidates_of
from metaleak.clients.datasets import CoLA
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Transformer
from metaleak.clients.rules import MAML
from metaleak.clients.sharing import computed_part

WEIGHT = QUERY.format(0)
FROZEN = ("bert.encoder.*", "bert.pooler.*", "classifier.*")
RULES = {
    "second order, rate 0.1, embeddings frozen": MAML(inner_rate=0.1, adapts=FROZEN),
    "second order, rate 0.01, embeddings frozen": MAML(inner_rate=0.01, adapts=FROZEN),
    "second order, rate 0.1, three steps, embeddings frozen": MAML(inner_rate=0.1, inner_steps=3, adapts=FROZEN),
    "second order, rate 0.1, all adapts": MAML(inner_rate=0.1),
    "first order, rate 0.1, embeddings frozen": MAML(inner_rate=0.1, order=1, adapts=FROZEN),
    "first order, rate 0.1, all adapts": MAML(inner_rate=0.1, order=1),
}
Pairs = set[tuple[int, int]]


def pairs_of(tokens: torch.Tensor, padding: int) -> Pairs:
    """Return the pairs of token and place of sentences `(B, T)`."""
    return {(token, place) for row in tokens.tolist() for place, token in enumerate(row) if token != padding}


def found_in(model: Transformer, parameters: Parameters, gradient: torch.Tensor, length: int) -> Pairs:
    """Return the pairs that lie in the space of the gradient."""
    _, near = candidates_of(model, parameters, WEIGHT, gradient, length)
    inside = near.ratios <= 1
    return set(zip(near.tokens[inside].tolist(), near.places[inside].tolist(), strict=True))


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", type=Path)
    asked.add_argument("--episodes", type=int, default=10)
    asked.add_argument("--seed", type=int, default=2000)
    asked.add_argument("--length", type=int, default=24)
    chosen = asked.parse_args()
    torch.set_num_threads(1)
    model = Transformer(directory=chosen.model)
    data = CoLA(tokenizer=chosen.model, length=chosen.length).load()
    parameters = model.initialize((chosen.length,), 2, torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1])
    print("| rule | episodes | support recall | query recall | query recall at theta | other pairs | s |")
    print("|---|---|---|---|---|---|---|")
    for name, rule in RULES.items():
        counts = torch.zeros(6, dtype=torch.float64)
        start = time.thread_time()
        for number in range(chosen.episodes):
            tokens, _ = batch(data, 4, chosen.seed + number)
            episode = Episode(tokens[:2], labels, tokens[2:], labels)
            computing, moving = computed_part((WEIGHT,), model, rule, parameters)
            gradient = rule.meta_gradient(computing, moving, episode)[0][WEIGHT].detach()
            support, query = (pairs_of(some, model.padding) for some in (tokens[:2], tokens[2:]))
            found = found_in(model, parameters, gradient, chosen.length)
            late = found
            if rule.adapts == "all":
                theta = {key: value.detach() for key, value in rule.adapt(model, parameters, episode).items()}
                late = found_in(model, theta, gradient, chosen.length)
            counts += torch.tensor(
                [
                    len(found & support),
                    len(support),
                    len(found & query),
                    len(query),
                    len(late & query),
                    len((found | late) - support - query),
                ]
            )
        seconds = (time.thread_time() - start) / chosen.episodes
        ratio = [f"{counts[top] / counts[of]:.3f}" for top, of in ((0, 1), (2, 3), (4, 3))]
        print(f"| {name} | {chosen.episodes} | {' | '.join(ratio)} | {int(counts[5])} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
