"""An experiment that is ready to be simulated: the data are loaded, the model and the rule have been tried."""

from dataclasses import dataclass

from metaleak.clients.episode import Parameters
from metaleak.clients.federation import Federation
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.simulate.accuracy import HeldOutTasks
from metaleak.deploy.simulate.run_directory import read_parameters
from metaleak.deploy.simulate.trial import try_out


@dataclass(frozen=True, eq=False)
class Prepared:
    """An experiment with its learners and the held-out tasks of its evaluation.

    `initial` are the parameters that the server begins with: those that are shared.
    """

    experiment: Experiment
    federation: Federation
    initial: Parameters
    tasks: HeldOutTasks


def prepared(experiment: Experiment) -> Prepared:
    """Return `experiment`, ready to be simulated.

    All errors in the data or the models are raised here, as `ValueError` or `OSError` in one line.
    """
    federation = experiment.federation()
    initial = federation.shared(federation.initial_parameters())
    if experiment.server.start_from is not None:
        initial = read_parameters(experiment.server.start_from, like=initial)
    tasks = HeldOutTasks(federation, experiment.evaluation)
    try_out(federation)
    return Prepared(experiment, federation, initial, tasks)
