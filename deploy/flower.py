"""metaleak as a Flower app: what `flwr run` starts, on its simulation or on its deployment engine."""

from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from metaleak.clients.app import client_app
from metaleak.clients.federation import Federation
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
    """Return the app's `ClientApp`."""

    def federation(context: Context) -> Federation:
        return experiment_of(context, folder).federation()

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


@lru_cache(maxsize=4)
def _experiment(path: Path, changes: tuple[str, ...]) -> Experiment:
    return read_experiment(path, changes)
