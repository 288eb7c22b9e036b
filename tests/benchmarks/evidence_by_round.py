"""What each round of a run reveals by itself, and how much of it is new: shadow learners' evidence, round by round.

    METALEAK_DATA=../shared/data python tests/benchmarks/evidence_by_round.py --noise shared:4 --learners 10
        --members 600 --non-members 1200 --rounds 20 --seeds 31 --attack-settings '{"samples": 500}'

Takes the settings of `whole_run.py`, of one seed and one number of rounds, with Conv4 by default. Prints the AUC of
the attack over one round and over all, and for each round the AUC with which the images that shadow learners hold are
told from others of the same classes, by this round alone and by all rounds so far, and the correlation of the others'
evidence with that of the round before.
"""

import json
import tempfile
from pathlib import Path

import torch
import whole_run
from sklearn.metrics import roc_auc_score
from torch import Tensor

from metaleak.attacks.shadows import weighted_rounds
from metaleak.attacks.shadows.discriminant import fit_discriminant
from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.simulate.launch import simulate_here


def main() -> None:
    """Simulate, attack over one round and over all, and print a JSON line a round."""
    parser = whole_run.parser(__doc__)
    parser.set_defaults(model="conv4", rounds=[20])
    given = parser.parse_args()
    seed, rounds = given.seeds[0], max(given.rounds)
    kept: list[tuple[Tensor, Tensor]] = []
    weighted = weighted_rounds.weighted

    def keeping(ratios: Tensor, members: Tensor, others: Tensor, chances: Tensor) -> Tensor:
        kept.append((members, others))
        return weighted(ratios, members, others, chances)

    weighted_rounds.weighted = keeping
    with tempfile.TemporaryDirectory() as folder:
        run = simulate_here(whole_run.experiment(given, seed, 1), Path(folder) / "run")
        for count in (1, rounds):
            asked = whole_run.experiment(given, seed, count)
            found = assess(run, asked, asked.attacks[0], f"rounds-{count}").evaluation
            assert found is not None
            auc = f"{found.auc.value:.3f} ({found.auc.low:.3f}-{found.auc.high:.3f})"
            print(json.dumps({"seed": seed, "rounds": count, "AUC": auc}), flush=True)
    members, others = kept[-1]
    for number in range(rounds):
        learned = fit_discriminant(members[:, : number + 1], others[:, : number + 1])
        line = {
            "round": number + 1,
            "shadows, this round": _auc(members[:, number], others[:, number]),
            "shadows, so far": _auc(*(learned.log_ratio(part[:, : number + 1]) for part in (members, others))),
        }
        if number:
            line["correlation"] = round(float(torch.corrcoef(others[:, number - 1 : number + 1].T)[0, 1]), 2)
        print(json.dumps(line))


def _auc(members: Tensor, others: Tensor) -> float:
    truth = torch.cat([torch.ones(len(members)), torch.zeros(len(others))])
    return round(float(roc_auc_score(truth, torch.cat([members, others]))), 3)


if __name__ == "__main__":
    main()
