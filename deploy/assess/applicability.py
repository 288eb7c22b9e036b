"""Which attacks can be made on which experiments; one that cannot is not applicable, which is not a failure."""

from metaleak.attacks.refusal import refusal
from metaleak.clients.sharing import EVERYTHING
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import Plugin


def reason_against(experiment: Experiment, attack: Plugin) -> str | None:
    """Return in one line why `attack` cannot be made on `experiment`, or `None` when it can."""
    made = attack.built("attacks")
    if experiment.task.episodes_per_message > 1 and "rest of the set" in made.requires:
        return f"{attack.name} is for one episode per message, task.episodes_per_message is above 1"
    reason = refusal(
        made,
        experiment.model.built("models"),
        experiment.built_defenses(),
        experiment.threat_model,
        all_shared=experiment.shares == EVERYTHING,
        rounds=min(experiment.targets.rounds, experiment.recorded_rounds()),
        fixed_sets=experiment.partition.fixed_sets(experiment.task),
    )
    return None if reason is None else f"{attack.name} {reason}"
