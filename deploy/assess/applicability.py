"""Which attacks make sense on which experiments: what does not is no failure."""

from typing import Protocol, runtime_checkable

from metaleak.clients.models import Model
from metaleak.defenses import Defense
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.plugins import Plugin


@runtime_checkable
class Selective(Protocol):
    """An attack that not every model is open to; one without this method is tried on all."""

    def applies_to(self, model: Model) -> bool:
        """Return whether the attack can be made on gradients of `model`."""
        ...


@runtime_checkable
class DefenseSelective(Protocol):
    """An attack that cannot be made under every defense; one without this method is tried under all."""

    def reason_against(self, defenses: tuple[Defense, ...]) -> str | None:
        """Return in one line why the attack cannot be made under `defenses`, or `None` when it can."""
        ...


def reason_against(experiment: Experiment, attack: Plugin) -> str | None:
    """Return in one line why `attack` cannot be made on `experiment`, or `None` when it can."""
    made = attack.built("attacks")
    if isinstance(made, Selective) and not made.applies_to(experiment.model.built("models")):
        return f"{attack.name} does not apply to the model {experiment.model.name}"
    if isinstance(made, DefenseSelective) and (reason := made.reason_against(experiment.built_defenses())):
        return f"{attack.name} does not apply: {reason}"
    return None
