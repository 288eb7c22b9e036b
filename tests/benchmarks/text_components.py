"""What one component of one layer gives away of a sentence: a map of components and layers, for three attacks.

    python tests/benchmarks/text_components.py MODEL_DIRECTORY [--attack matching|descent|exact] [--cells query ...]
    python tests/benchmarks/text_components.py --combine OUTPUT ...

Sentences of CoLA (from METALEAK_DATA) of at most `--length` tokens, one a learner, with a new random classifier;
their lengths and labels are known. A cell is a selection of parameters whose gradient the attack reads: `full` (all
layers and the classifier), `everything` (the embeddings, too), `layers` (each layer alone), or a component (each
layer's alone). `--exchanges` adds the attack with so many rounds of them. A line a cell,
with ROUGE (special tokens do not count) and its 95 % interval by bootstrap over sentences; `--combine` makes Markdown
tables of such lines. Cells of one name are attacked together: tensors that a learner does not share are 0.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from text_span import batch, observed, words

from metaleak.attacks.attack import Reconstructions
from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.observation import Observation
from metaleak.attacks.text.matching.text_matching import TextMatching
from metaleak.attacks.text.space_descent import TextDescent
from metaleak.attacks.text.span_attack import TextSpan
from metaleak.clients.datasets import CoLA
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Transformer

LAYER = "bert.encoder.layer.{}."
COMPONENTS = {
    "query": "attention.self.query.weight",
    "key": "attention.self.key.weight",
    "value": "attention.self.value.weight",
    "attention output": "attention.output.dense.weight",
    "FFN in": "intermediate.dense.weight",
    "FFN out": "output.dense.weight",
}
WHOLE = {"full": ("bert.encoder.*", "bert.pooler.*", "classifier.*"), "everything": ("*",)}
TEXTS = ("wikitext2_eval/valid.txt.gz", "wikitext2_eval/test.txt.gz", "ag_news_test/test.csv.gz")
MEASURES = ("ROUGE-1", "ROUGE-2", "ROUGE-L", "sequences recovered")


def cells_of(name: str, layers: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """Return the patterns of the parameters of each cell of a name, one cell per layer but for the whole."""
    if name in WHOLE:
        return {"all": WHOLE[name]}
    return {str(layer): (LAYER.format(layer) + COMPONENTS.get(name, "*"),) for layer in layers}


def together(parts: Sequence[Observation]) -> Observation:
    """Return one observation of the learners of all: what a learner does not share is 0."""
    names = dict.fromkeys(name for part in parts for name in part.gradients)
    first = parts[0]
    gradients = {
        name: torch.cat([part.gradients.get(name, torch.zeros_like(first.parameters[name])[None]) for part in parts])
        for name in names
    }
    return replace(first, gradients=gradients)


def observations(
    model: Transformer, parameters: Parameters, patterns: tuple[str, ...], sentences: Sequence[torch.Tensor]
) -> list[Observation]:
    """Return what a server sees of a learner with each of the `sentences (1, T)`, of label 0."""
    names = tuple(name for name in parameters if any(fnmatchcase(name, pattern) for pattern in patterns))
    label = torch.zeros(1, dtype=torch.int64)
    return [observed(model, parameters, names, one, label) for one in sentences]


def rebuilt(
    attack: str, parts: Sequence[Observation], sizes: Sequence[int], chosen: argparse.Namespace
) -> dict[str, torch.Tensor]:
    """Return the sentences `(L, 1, T)` that the attack makes, by its name; empty ones where it cannot be made."""
    if attack == "matching":
        folder = Path(chosen.data)
        matching = TextMatching(
            steps=chosen.steps,
            candidates=chosen.candidates,
            texts=tuple(folder / name for name in TEXTS),
            memory=chosen.memory,
            rate=chosen.rate,
            exchanges=chosen.exchanges,
            proposals=chosen.proposals,
        )
        seen = replace(together(parts), lengths=torch.tensor(sizes)[:, None])
        stages = matching.stages(seen.to(chosen.device), chosen.seed)
        return dict(zip(("matching", "matching, exchanges"), (one.examples for one in stages), strict=False))
    one = TextDescent() if attack == "descent" else TextSpan()
    made = []
    for part in parts:
        found: Reconstructions | None = None
        try:
            found = one.reconstruct(part, chosen.seed)
        except ValueError as error:
            print(json.dumps({"refused": str(error)[:120]}), flush=True)
        made.append(torch.zeros(1, 1, part.input_shape[0], dtype=torch.int64) if found is None else found.examples)
    return {attack: torch.cat(made)}


def line(attack: str, name: str, layer: str, model: Transformer, made: torch.Tensor, held: torch.Tensor) -> None:
    """Print the measures of a cell."""
    ours, true = (words(model, some) for some in (made, held))
    _, measures = similarity("tokens", ours.numpy(), true.numpy(), padding=model.padding)
    values = {one.name: [round(100 * each, 1) for each in (one.value, one.low, one.high)] for one in measures}
    row = {"attack": attack, "cell": name, "layer": layer, "sentences": len(made)}
    print(json.dumps(row | {key: values[key] for key in MEASURES}), flush=True)


def tables(paths: Sequence[Path]) -> None:
    """Print a Markdown table for each attack, of the lines in the files: ROUGE-L of cells by layer."""
    rows = [json.loads(one) for path in paths for one in path.read_text().splitlines() if '"cell"' in one]
    for attack in dict.fromkeys(row["attack"] for row in rows):
        mine = [row for row in rows if row["attack"] == attack]
        layers = sorted({row["layer"] for row in mine})
        print(f"\n{attack}, {mine[0]['sentences']} sentences a cell\n\n| | {' | '.join(layers)} |")
        print("|---" * (len(layers) + 1) + "|")
        for name in dict.fromkeys(row["cell"] for row in mine):
            measure = "ROUGE-1" if name in WHOLE else "ROUGE-L"
            of = {row["layer"]: row[measure] for row in mine if row["cell"] == name}
            texts = {layer: f"{value:.0f} [{low:.0f}, {high:.0f}]" for layer, (value, low, high) in of.items()}
            cells = [texts.get(layer, "") for layer in layers]
            print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", type=Path, nargs="?")
    asked.add_argument("--combine", type=Path, nargs="+")
    asked.add_argument("--attack", choices=["matching", "descent", "exact"], nargs="+", default=["matching"])
    asked.add_argument("--cells", nargs="+", default=[*WHOLE, "layers", *COMPONENTS])
    asked.add_argument("--layers", type=int, nargs="+", default=[*range(6)])
    asked.add_argument("--sentences", type=int, default=10)
    asked.add_argument("--steps", type=int, default=2000)
    asked.add_argument("--rate", type=float, default=0.01)
    asked.add_argument("--exchanges", type=int, default=0)
    asked.add_argument("--proposals", type=int, default=200)
    asked.add_argument("--candidates", type=int, default=500)
    asked.add_argument("--seed", type=int, default=7000)
    asked.add_argument("--length", type=int, default=24)
    asked.add_argument("--device", default="cpu")
    asked.add_argument("--memory", type=float, default=1.0)
    asked.add_argument("--data", type=Path, default=os.environ.get("METALEAK_DATA"))
    chosen = asked.parse_args()
    if chosen.combine:
        tables(chosen.combine)
        return
    torch.set_num_threads(1)
    model = Transformer(directory=chosen.model)
    data = CoLA(tokenizer=chosen.model, length=chosen.length).load()
    parameters = model.initialize((chosen.length,), 2, torch.Generator().manual_seed(0))
    drawn = [batch(data, 1, chosen.seed + number)[0] for number in range(chosen.sentences)]
    sizes = [int((one != model.padding).sum()) for one in drawn]
    for name in chosen.cells:
        cells = cells_of(name, chosen.layers)
        for attack in chosen.attack:
            start = time.monotonic()
            # One by one where nothing is gained together, so that lines come as they are made.
            groups = [cells] if attack == "matching" else [{layer: some} for layer, some in cells.items()]
            for group in groups:
                parts = [one for some in group.values() for one in observations(model, parameters, some, drawn)]
                for stage, made in rebuilt(attack, parts, sizes * len(group), chosen).items():
                    for layer, mine in zip(group, made.split(len(drawn)), strict=True):
                        line(stage, name, layer, model, mine, torch.stack(drawn))
            seconds = time.monotonic() - start
            print(json.dumps({"seconds": round(seconds, 1), "attack": attack, "of": name}), flush=True)


if __name__ == "__main__":
    main()
