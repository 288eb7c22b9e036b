"""The rivals' side of `against_membership_tools.py`: LeakPro's and ML Privacy Meter's attacks on given probabilities.

Runs in an environment with what these tools import; it need not have metaleak. Their objects are filled with the
arrays that their own preparation would compute from models and data; only that is left out.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")


class NoCurves:
    """In the place of LeakPro's result, which evaluates the scores."""

    @staticmethod
    def from_full_scores(true_membership, signal_values, result_name=None, metadata=None):
        return signal_values


def leakpro_lira(own, member):
    from leakpro.attacks.mia_attacks import lira

    lira.MIAResult = NoCurves
    lira.tqdm = lambda items, **_: items
    attack = prepared(lira.AttackLiRA, own, var_calculation="carlini")
    attack.fix_var_threshold = 32
    odds = np.log(own + 1e-45) - np.log(1 - own + 1e-45)

    def scores(victim):
        others = np.arange(len(own)) != victim
        attack.target_logits, attack.shadow_models_logits = odds[victim], odds[others]
        attack.out_indices = ~member[others]
        return attack.run_attack().ravel()

    return scores


def leakpro_rmia(own, member):
    from leakpro.attacks.mia_attacks import rmia

    rmia.MIAResult = NoCurves
    attack = prepared(rmia.AttackRMIA, own, temperature=1.0, gamma=1.0)
    attack.epsilon = 1e-6
    # Two classes whose first is the point's own: what the attack uses of all logits.
    logits = np.stack([np.log(own + 1e-45), np.log(1 - own + 1e-45)], axis=-1)
    attack.ground_truth_indices = np.zeros(own.shape[1], int)

    def scores(victim):
        others = np.arange(len(own)) != victim
        attack.logits_theta, attack.logits_shadow_models = logits[victim], list(logits[others])
        # As its preparation has it, of the points that are asked about in the place of a sample of the population.
        attack.ratio_z = own[victim][None] / (own[others].mean(axis=0, keepdims=True) + attack.epsilon)
        return attack.run_attack().ravel()

    return scores


def prepared(kind, own, **settings):
    """Return an attack of LeakPro without a handler, online, with the scores of all points in their order."""
    from leakpro.attacks.mia_attacks.abstract_mia import AbstractMIA

    attack = object.__new__(kind)
    attack.configs = kind.AttackConfig(num_shadow_models=len(own) - 1, online=True, **settings)
    for key, value in attack.configs.model_dump().items():
        setattr(attack, key, value)
    AbstractMIA.audit_dataset = {"in_members": np.arange(own.shape[1]), "out_members": np.arange(0)}
    return attack


def privacy_meter_rmia(own, member):
    from modules.mia.attack import MIA

    logger = logging.getLogger("rival")
    logger.setLevel(logging.ERROR)
    signals, members = own.T, member.T
    meter = MIA(logger)

    def scores(victim):
        others = np.array([one for one in range(len(own)) if one != victim])
        # Its coefficient is found with the first victim's pair, and used again, as the tool does for more targets.
        found, _ = meter.run_mia(signals, members, victim, others, logger, {"attack": "RMIA"}, signals, True)
        return found

    return scores


ATTACKS = {
    "LiRA, LeakPro": leakpro_lira,
    "RMIA, LeakPro": leakpro_rmia,
    "RMIA, ML Privacy Meter": privacy_meter_rmia,
}


def main(given):
    sys.path[:0] = given.paths
    arrays = np.load(given.arrays)
    own, member = arrays["own"], arrays["member"]
    told = {}
    for name, begin in ATTACKS.items():
        scores_of = begin(own, member)
        scores_of(0)
        began = time.perf_counter()
        scores = [np.asarray(scores_of(victim)).tolist() for victim in range(len(own))]
        told[name] = {"scores": scores, "seconds": (time.perf_counter() - began) / len(own)}
    given.result.write_text(json.dumps(told))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--paths", nargs="+", default=[])
    main(parser.parse_args())
