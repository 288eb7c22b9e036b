"""The audit of an experiment's defenses, beside the attacks on its runs."""

import math

from metaleak.clients.rules import Rule
from metaleak.defenses import Accounted, Defense, ExampleSet
from metaleak.deploy.audits.audit import Audit, Trials, audit
from metaleak.deploy.audits.canaries import canary_for
from metaleak.deploy.config.experiment import Experiment

_CONFIDENCE = 0.999
"""A suite has many audits of tight mechanisms: with 95 % one of ten would be exceeded by chance."""


def run_audit(experiment: Experiment, asks: ExampleSet) -> Audit | None:
    """Return what `targets.audit` trials prove of the defenses over the whole run, or `None` where none is asked for.

    The confidence is 99.9 %. Of several defenses with a guarantee for the set that `asks` names, the one with the
    smallest epsilon is audited. `None` where no defense has a finite guarantee. Raises `ValueError` in one line for a
    defense that cannot be audited.
    """
    if experiment.targets.audit is None:
        return None
    rounds = experiment.releases()
    found: list[Audit] = []
    rule: Rule = experiment.rule.built("rules")
    for plugin, acting in zip(experiment.defenses, experiment.built_defenses(), strict=True):
        if not isinstance(acting, Accounted) or not math.isfinite(acting.epsilon_after(rounds)):
            continue
        defense: Defense = plugin.built("defenses")
        canary, delta = canary_for(defense, rule, asks, rounds, experiment.seed)
        trials = Trials(trials=experiment.targets.audit, confidence=_CONFIDENCE, seed=experiment.seed)
        found.append(audit(canary, delta, trials))
    return min(found, key=lambda one: one.accounted, default=None)
