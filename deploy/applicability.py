"""Which attacks make sense on which experiments: what does not is no failure."""

from typing import Protocol, runtime_checkable

from metaleak.clients.models import Model
from metaleak.deploy.experiment import Experiment
from metaleak.deploy.plugins import Plugin


@runtime_checkable
class Selective(Protocol):
    """An attack that not every model is open to; one without this method is tried on all."""

    def applies_to(self, model: Model) -> bool:
        """Return whether the attack can be made on gradients of `model`."""
        ...


def reason_against(experiment: Experiment, attack: Plugin) -> str | None:
    """Return in one line why `attack` cannot be made on `experiment`, or `None` when it can."""
    made = attack.build("attacks")
    if isinstance(made, Selective) and not made.applies_to(experiment.model.build("models")):
        return f"{attack.name} does not apply to the model {experiment.model.name}"
    return None
