"""How much of the promised epsilon an audit proves for each defense with a guarantee, and how long it takes.

    python tests/benchmarks/audit_table.py [--defenses gaussian record-level ...] [--epsilons 8 4 1] [--seed 21]
    python tests/benchmarks/audit_table.py --one-run

One release, first-order MAML, delta 1e-5, 95 % confidence. The number of trials is that of `TRIALS`, more for a
smaller epsilon, or that of `--trials`. Times are in seconds of one processor.
"""

import argparse
import time
from typing import Any

import torch

from metaleak.clients.rules import first_order_maml
from metaleak.defenses import (
    DistributedGaussian,
    DistributedRecordLevel,
    ExampleSet,
    GaussianMechanism,
    RecordLevel,
)
from metaleak.deploy.audits.audit import Trials, audit
from metaleak.deploy.audits.canaries import canary_for
from metaleak.deploy.audits.one_run import one_run_audit

TRIALS = {8.0: 10_000, 4.0: 30_000, 1.0: 110_000}
DEFENSES: dict[str, tuple[Any, tuple[ExampleSet, ...]]] = {
    "gaussian": (GaussianMechanism, ("query",)),
    "record-level": (RecordLevel, ("query", "support")),
    "distributed-gaussian": (DistributedGaussian, ("query",)),
    "distributed-record-level": (DistributedRecordLevel, ("query", "support")),
}


def main() -> None:
    """Audit each cell, and print its row when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--defenses", nargs="+", default=list(DEFENSES), choices=list(DEFENSES))
    parser.add_argument("--epsilons", nargs="+", type=float, default=list(TRIALS))
    parser.add_argument("--asks", nargs="+", default=["query", "support"], choices=["query", "support"])
    parser.add_argument("--trials", type=int)
    parser.add_argument("--one-run", action="store_true", help="many canaries of one run, not one a learner")
    parser.add_argument("--seed", type=int, default=21)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("defense", "epsilon", "asked about", "guesses", "proven", "part", "of any mechanism", "seconds")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in chosen.defenses:
        made, sets = DEFENSES[name]
        for epsilon in chosen.epsilons:
            for asks in (one for one in sets if one in chosen.asks or len(sets) == 1):
                started = time.process_time()
                trials = Trials(trials=chosen.trials or TRIALS[epsilon], seed=chosen.seed)
                defense, rule = made(clip=1, epsilon=epsilon), first_order_maml()
                if chosen.one_run:
                    found = one_run_audit(defense, rule, asks, 1, trials)
                else:
                    canary, delta = canary_for(defense, rule, asks, 1, trials.seed)
                    found = audit(canary, delta, trials)
                taken = time.process_time() - started
                about = asks if len(sets) > 1 else ""
                print(
                    f"| `{name}` | {epsilon:g} | {about} | {found.trials} | {found.lower_bound:.2f} | "
                    f"{found.lower_bound / found.accounted:.0%} | {found.any_mechanism:.2f} | {taken:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
