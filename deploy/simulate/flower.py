"""metaleak as a Flower app, which `flwr run` starts on Flower's simulation or deployment engine."""

import logging
import os
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from metaleak.clients.app import client_app
from metaleak.clients.federation import Federation
from metaleak.clients.noise_key import noise_key
from metaleak.defenses import Accounted, RandomSource
from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.reading import read_experiment
from metaleak.server.record.whole_file import numbered

_FLOWER_LOG = logging.getLogger("flwr")

if TYPE_CHECKING:
    from metaleak.deploy.simulate.rounds import RoundDone


def experiment_of(context: Context, folder: Path) -> Experiment:
    """Return the experiment that the app's run configuration names.

    `experiment` is a file, relative to the app's `folder`; `set` holds changes as on the command line, separated by
    semicolons, such as `rounds=5; partition.learners=20`.
    """
    changes = str(context.run_config.get("set", "")).split(";")
    named = str(context.run_config.get("experiment", "experiment.yaml"))
    return _experiment(folder / named, tuple(change.strip() for change in changes if change.strip()))


def flower_client(folder: Path) -> ClientApp:
    """Return the app's `ClientApp`.

    On the deployment engine the learners' noise is keyed by the SuperNode's own secret: the file that `noise-key` of
    its `--node-config` names, else `metaleak-noise-key` in Flower's home, which is made when it is missing.
    """

    def federation(context: Context) -> Federation:
        experiment = experiment_of(context, folder)
        return experiment.federation() if _simulated(context) else _with_secret(experiment, context)

    return client_app(federation)


def flower_server(folder: Path) -> ServerApp:
    """Return the app's `ServerApp`.

    The run directory is `out` of the run configuration, or the first of `<out>-2`, `<out>-3` and so on that is free.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        # A node starts one process per message, and needs none of this.
        from metaleak.deploy.simulate.run_directory import RunDirectory
        from metaleak.deploy.simulate.simulation import Simulation

        # Absolute, because the SuperLink may have been started anywhere.
        asked = Path(str(context.run_config.get("out", "runs/flower"))).absolute()
        out = next(place for place in numbered(asked) if RunDirectory.is_free(place))
        simulation = Simulation(experiment_of(context, folder), out, on_round=_tell)
        _FLOWER_LOG.info("metaleak writes the run to %s", out)
        simulation.serve(grid)
        _FLOWER_LOG.info("metaleak is done: metaleak attack %s query", out)

    return app


def _simulated(context: Context) -> bool:
    """Return whether this is an actor of Flower's simulation, whose configuration of a node is these two keys."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and set(context.node_config) == {"partition-id", "num-partitions"}


def _with_secret(experiment: Experiment, context: Context) -> Federation:
    """Return the federation of a SuperNode; raises `ValueError` where a learner would have no node of its own."""
    federation = experiment.federation()
    if experiment.engine.learners_per_node == "auto" and any(
        isinstance(defense, Accounted) for defense in federation.defenses
    ):
        raise ValueError(
            "engine.learners_per_node: must be a number on the deployment engine with a defense that promises an "
            "epsilon; otherwise a learner that is asked again on another node would send its gradient with new noise"
        )
    home = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))
    key = noise_key(Path(str(context.node_config.get("noise-key", home / "metaleak-noise-key"))))
    # The noise of another run must differ, though its rounds have the same numbers.
    return replace(federation, secret=RandomSource.of(key, context.run_id).key)


def _tell(done: "RoundDone") -> None:
    """Log the result of a round."""
    missing = f", {done.missing} learners are missing" if done.missing else ""
    accuracy = done.accuracy
    adapted = (
        ""
        if accuracy is None
        else f", adapted accuracy {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f})"
    )
    _FLOWER_LOG.info("round %d of %d%s%s", done.round, done.rounds, missing, adapted)


@lru_cache(maxsize=4)
def _experiment(path: Path, changes: tuple[str, ...]) -> Experiment:
    return read_experiment(path, changes)
