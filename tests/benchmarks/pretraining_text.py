"""What a finetuned text classifier reveals about its pretraining sentences: a line of docs/pretraining.md.

    python tests/benchmarks/pretraining_text.py TOKENIZER --seeds 11 12 > lines.jsonl
    python tests/benchmarks/pretraining_tables.py --combine lines.jsonl

A BERT of one layer and 32 units is trained on 500 of 1 000 sentences of Rotten Tomatoes, and its classifier replaced
by one of the four classes of AG News. TOKENIZER is a model's directory with a `tokenizer.json`, as of MiniLM.
"""

import argparse
import csv
import gzip
import json
import os
import tempfile
import time
from pathlib import Path

from pretraining_tables import LIRA, RATIO, WHITE_BOX, attack_name

from metaleak.attacks.work import Work
from metaleak.deploy.pretraining.assessment import assess_study
from metaleak.deploy.pretraining.reading import study_from
from metaleak.deploy.pretraining.shadow_models import make_models


def ag_news(folder: Path) -> Path:
    """Write AG News's test set, which has no names of columns, as a file that `OwnText` reads."""
    source = Path(os.environ["METALEAK_DATA"]) / "ag_news_test" / "test.csv.gz"
    path = folder / "ag_news.csv"
    with gzip.open(source, "rt", encoding="utf-8", newline="") as file, path.open("w", newline="") as out:
        written = csv.writer(out)
        written.writerow(["sentence", "label"])
        written.writerows([title, label] for label, title, _ in csv.reader(file))
    return path


def main(given: argparse.Namespace) -> None:
    corpora = "metaleak.clients.datasets:"
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            text = {"tokenizer": str(given.tokenizer), "length": 32}
            plain = {
                "seed": seed,
                "pool": {"data": {"name": corpora + "RottenTomatoes", **text}, "examples": 1000},
                "downstream": {
                    "data": {"name": corpora + "OwnText", "path": str(ag_news(folder)), **text},
                    "examples": 3000,
                },
                "model": {
                    "name": "metaleak.clients.models:TinyBERT",
                    "vocabulary": given.vocabulary,
                    "width": 32,
                    "layers": 1,
                },
                "pretraining": {"optimizer": "adam", "rate": 0.002, "epochs": 12, "batch": 16, "weight_decay": 0},
                "finetunings": {
                    "head": {"training": {"optimizer": "adam", "rate": 0.003, "epochs": 20, "schedule": "cosine"}}
                },
                "models": given.models,
                "points": 1000,
                "attacks": [RATIO, LIRA, WHITE_BOX],
            }
            study = study_from(plain, "text")
            began = time.monotonic()
            make_models(study, folder / "models", Work())
            for found in assess_study(study, folder / "models", folder, Work()).values():
                evaluation = found.evaluation
                told = {
                    "group": "text",
                    "case": "Rotten Tomatoes to AG News, new last layer",
                    "attack": attack_name(found.attack),
                    "seed": seed,
                    "auc": evaluation.auc.model_dump(),
                    "tpr": evaluation.tpr["0.01"].model_dump(),
                    "targets": evaluation.members + evaluation.non_members,
                    "members": evaluation.members,
                    "downstream": found.released.accuracy.value,
                    "start": found.released.start_accuracy,
                    "start_outside": found.released.start_accuracy_outside,
                    "seconds_models": round(time.monotonic() - began, 1),
                    "device": "CPU",
                }
                print(json.dumps(told), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11])
    parser.add_argument("--models", type=int, default=33)
    parser.add_argument("--vocabulary", type=int, default=30522)
    main(parser.parse_args())
