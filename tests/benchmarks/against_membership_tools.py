"""Two attacks on the same pretrained models, by LeakPro, ML Privacy Meter and metaleak: AUC and seconds per victim.

These tools attack a model's own training examples, with their labels, as `white-box-lira` does for the pretrained
models of a study. Each model in turn is the victim, and all others are its shadows. Every side gets the probability
of each point's own label, and which model was trained on which points.

    LiRA   LeakPro's `AttackLiRA`, online, against `white-box-lira`
    RMIA   LeakPro's `AttackRMIA`, online, gamma 1, temperature 1, and ML Privacy Meter's `run_rmia`, which is only
           offline and tunes its coefficient itself, against `relative-confidence`

Each side is a process with one thread; they run in turn. The time is that of the scores, from arrays to arrays:
LeakPro's tables and curves are not made. Intervals are over points and victims (see `evaluate`). Neither tool's
release on the package index has these attacks: both are taken from a checkout, on the rival's `PYTHONPATH`.

    python -m venv X && X/bin/pip install torch scipy scikit-learn pandas seaborn dotmap optuna ts2vec umap-learn
    python tests/benchmarks/against_membership_tools.py STUDY.yaml --models FOLDER --rival-python X/bin/python \\
        --leakpro CHECKOUT --privacy-meter CHECKOUT

FOLDER has the models of the study, as `metaleak pretraining` leaves them in `OUT/models`; what is missing is made.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from alternating import HERE, alternating, arguments, machine, main_of, run_side, show

from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.pretraining.evidence import ShadowAnswers
from metaleak.attacks.pretraining.relative_confidence import RelativeConfidence
from metaleak.attacks.pretraining.white_box import WhiteBoxLiRA
from metaleak.attacks.work import Work
from metaleak.deploy.pretraining.reading import read_study
from metaleak.deploy.pretraining.shadow_models import answers_of, make_models

OURS = {"LiRA": WhiteBoxLiRA(), "RMIA": RelativeConfidence()}


def own_side(given: argparse.Namespace) -> None:
    """Write the scores of our attacks of all victims, and the seconds that one takes."""
    arrays = np.load(given.arrays)
    own, member = torch.from_numpy(arrays["own"])[..., None, None], torch.from_numpy(arrays["member"])
    everything = ShadowAnswers(own, member)
    told = {}
    for name, attack in OURS.items():
        attack(everything.others(0), own[0], Work())
        began = time.perf_counter()
        scores = [attack(everything.others(victim), own[victim], Work()).tolist() for victim in range(len(own))]
        told[f"{name}, metaleak"] = {"scores": scores, "seconds": (time.perf_counter() - began) / len(own)}
    given.result.write_text(json.dumps(told))


def compare(given: argparse.Namespace, folder: Path) -> None:
    study = read_study(given.study, tuple(given.set))
    make_models(study, given.models, Work())
    answers = answers_of(study, given.models, next(iter(study.finetunings)))
    own = np.stack([one.start[:, 0, 0].numpy() for one in answers])
    member = np.stack([one.member.numpy() for one in answers])
    arrays, result = folder / "arrays.npz", folder / "result.json"
    np.savez(arrays, own=own, member=member)
    shared = ["--arrays", str(arrays), "--result", str(result)]
    rival = [given.rival_python, str(HERE / "against_membership_tools_rival.py"), *shared]
    paths = [str(path) for path in (given.leakpro, given.privacy_meter) if path is not None]
    sides = {
        "metaleak": lambda: run_side([sys.executable, str(Path(__file__).resolve()), "--own-side", *shared], result),
        "rivals": lambda: run_side([*rival, "--paths", *paths], result, timeout=3600),
    }
    found = alternating(sides, given.repeats)
    rows = []
    victims = np.arange(len(own)).repeat(own.shape[1])
    points = np.tile(np.arange(own.shape[1]), len(own))
    for side in found.values():
        for name in side[0]:
            scores = np.array(side[0][name]["scores"]).ravel()
            auc = evaluate(scores, member.ravel(), groups=points, crossed=victims, resamples=200).auc
            taken = [1000 * one[name]["seconds"] for one in side]
            middle = f"{median(taken):.1f} ({min(taken):.1f} to {max(taken):.1f})"
            rows.append([name, f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})", middle])
    if given.json:
        print(json.dumps({"rows": rows, "machine": machine()}))
        return
    show(
        f"{len(own)} victims, {own.shape[1]} points, {len(own) - 1} shadows",
        ["attack", "AUC", "milliseconds a victim"],
        sorted(rows),
        [f"load {os.getloadavg()[0]:.1f}; {machine()['processor']}"],
    )


if __name__ == "__main__":
    if "--own-side" in sys.argv:
        sides_own = argparse.ArgumentParser()
        sides_own.add_argument("--own-side", action="store_true")
        sides_own.add_argument("--arrays", type=Path, required=True)
        sides_own.add_argument("--result", type=Path, required=True)
        own_side(sides_own.parse_args())
        sys.exit(0)
    parser = arguments(__doc__.splitlines()[0], 3)
    parser.add_argument("study", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--rival-python", required=True)
    parser.add_argument("--leakpro", type=Path)
    parser.add_argument("--privacy-meter", type=Path)
    asked = parser.parse_args()
    sys.exit(main_of(lambda folder: compare(asked, folder)))
