"""metaleak as a Flower app: what `flwr run` starts, on its simulation or on its deployment engine."""

import os
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from metaleak.clients.app import client_app
from metaleak.clients.federation import Federation
from metaleak.clients.noise_key import noise_key
from metaleak.defenses import Accounted, RandomSource
from metaleak.deploy.experiment import Experiment, read_experiment


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
        simulated = "ray" in sys.modules and sys.modules["ray"].is_initialized()
        return experiment.federation() if simulated else _with_secret(experiment, context)

    return client_app(federation)


def flower_server(folder: Path) -> ServerApp:
    """Return the app's `ServerApp`; the run directory is `out` of the run configuration."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        # A node starts a process a message, and needs none of this.
        from metaleak.deploy.launch import Simulation

        out = Path(str(context.run_config.get("out", "runs/flower")))
        Simulation(experiment_of(context, folder), out).serve(grid)

    return app


def _with_secret(experiment: Experiment, context: Context) -> Federation:
    """Return the federation of a SuperNode; raises `ValueError` where a learner would have no node of its own."""
    federation = experiment.federation()
    if experiment.engine.learners_per_node == "auto" and any(
        isinstance(defence, Accounted) for defence in federation.defences
    ):
        raise ValueError(
            "engine.learners_per_node: must be a number on the deployment engine with a defense that promises an "
            "epsilon: a learner that is asked again elsewhere would send once more, under another node's noise"
        )
    home = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))
    key = noise_key(Path(str(context.node_config.get("noise-key", home / "metaleak-noise-key"))))
    # Another run asks other things in rounds of the same numbers.
    return replace(federation, secret=RandomSource.of(key, context.run_id).key)


@lru_cache(maxsize=4)
def _experiment(path: Path, changes: tuple[str, ...]) -> Experiment:
    return read_experiment(path, changes)
