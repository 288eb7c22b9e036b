"""Flower's simulation on Ray actors, of this machine or of a cluster."""

import logging
import threading
from collections.abc import Callable

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.engines.interruption import interruptible
from metaleak.deploy.engines.ray_start import check_ray, gpus_each, start_ray, stop_ray
from metaleak.deploy.errors import Interrupted

_LANES = 4
"""Flower nodes an actor. Flower looks at each node every 0.1 s and takes one message: one node would starve an
actor.
"""

_PATIENCE_SECONDS = 0.5
_LEAVING_SECONDS = 10.0


class RayEngine:
    """Runs a server and a client app until the server is done, or Ctrl-C or SIGTERM. Good for one run.

    The constructor starts Ray, whose processes live as long as the thread that called it.
    """

    def __init__(self, settings: EngineSettings, learners: int) -> None:
        self._settings = settings
        self._learners = learners
        self._actors = start_ray(settings)
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._served = False

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C or SIGTERM came."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raise `RuntimeError` in one line when Ray itself has died, so that waiting is useless."""
        if not self._stop.is_set():
            check_ray("--resume goes on from the last round")

    def close(self) -> None:
        """End Ray when there is nothing to run after all; `run` does so by itself."""
        stop_ray()

    def run(self, client: ClientApp, serve: Callable[[Grid], object]) -> None:
        """Call `serve` with a grid whose nodes run `client`; return when it has returned."""
        # Flower logs tracebacks of failures; the error that is raised says in one line what matters.
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                serve(grid)
                self._served = True
            except Interrupted:
                # The caller checks `stopped`; in this thread nobody would catch the exception.
                return
            finally:
                self._end_actors_after(_LEAVING_SECONDS)

        per_node = self._settings.learners_per_node
        try:
            with interruptible(self._interrupt):
                run_simulation(
                    server_app=server,
                    client_app=client,
                    num_supernodes=_LANES * self._actors if per_node == "auto" else -(-self._learners // per_node),
                    # Ray restarts an actor that dies, and the strategy sends its messages again.
                    backend_config={
                        "client_resources": {
                            "num_cpus": 1,
                            "num_gpus": gpus_each(self._settings, self._actors),
                            "max_restarts": -1,
                        }
                    },
                )
        except Exception:
            # When actors do not end by themselves, Ray is stopped under Flower, whose complaints then mean nothing.
            if not self._stop.is_set() and not self._served:
                raise
        finally:
            self._ended.set()
            stop_ray()

    def _interrupt(self) -> None:
        """Stop the server when it next uses the grid, and end the actors if they are still busy then."""
        self._stop.set()
        self._end_actors_after(_PATIENCE_SECONDS)

    def _end_actors_after(self, seconds: float) -> None:
        """End actors that do not end by themselves, because they hang or wait for a lost machine."""

        def end_actors() -> None:
            if not self._ended.wait(seconds):
                stop_ray()

        threading.Thread(target=end_actors, daemon=True).start()
