"""Finetune a transformer on a data set of sentences, for attacks on a model that has learned its task.

    python tests/benchmarks/text_finetune.py MODEL_DIRECTORY NEW_DIRECTORY [--data sst2] [--steps 200]

All parameters learn by AdamW, with dropout, on sentences of at most `--length` tokens (from METALEAK_DATA); the last
`--tested` of a random order are left out, and accuracy on them is printed. The new directory holds the model, its
classifier and the tokenizer, as the first one does; the other scripts on text take it in place of that.
"""

import argparse
import shutil
from pathlib import Path

import torch
from text_span import KINDS
from torch.nn import functional as F

from metaleak.clients.datasets import DataSet
from metaleak.clients.models import Transformer


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", type=Path)
    asked.add_argument("new", type=Path)
    asked.add_argument("--data", choices=[*KINDS], default="sst2")
    asked.add_argument("--steps", type=int, default=200)
    asked.add_argument("--batch", type=int, default=16)
    asked.add_argument("--rate", type=float, default=1e-4)
    asked.add_argument("--length", type=int, default=24)
    asked.add_argument("--tested", type=int, default=500)
    asked.add_argument("--seed", type=int, default=0)
    chosen = asked.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(chosen.seed)
    source: DataSet = KINDS[chosen.data](tokenizer=chosen.model, length=chosen.length)
    data = source.load()
    model = Transformer(directory=chosen.model)
    module, padding = model.build(2), model.padding
    order = torch.randperm(len(data.labels))
    held, tested = order[: -chosen.tested], order[-chosen.tested :]
    optimizer = torch.optim.AdamW(module.parameters(), lr=chosen.rate)

    def logits(places: torch.Tensor) -> torch.Tensor:
        tokens = data.inputs(places)
        made: torch.Tensor = module(input_ids=tokens, attention_mask=tokens != padding).logits
        return made

    module.train()
    for step in range(chosen.steps):
        places = held[torch.randint(len(held), (chosen.batch,))]
        loss = F.cross_entropy(logits(places), data.labels[places])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}", flush=True)
    module.eval()
    with torch.no_grad():
        right = torch.cat([logits(some).argmax(dim=1) == data.labels[some] for some in torch.split(tested, 50)])
    print(f"accuracy {100 * float(right.float().mean()):.1f} % on {len(right)} other sentences")
    module.save_pretrained(chosen.new)
    for path in chosen.model.iterdir():
        if path.name.startswith(("tokenizer", "vocab", "special_tokens")):
            shutil.copy(path, chosen.new)


if __name__ == "__main__":
    main()
