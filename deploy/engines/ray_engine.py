"""An engine that runs Flower's messages on Ray actors, on this machine or on a cluster."""

import logging
import threading
from collections.abc import Callable

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.engines.interruption import interruptible
from metaleak.deploy.engines.ray_grid import AHEAD, RayGrid
from metaleak.deploy.engines.ray_start import check_ray, gpus_each, start_ray, stop_ray
from metaleak.deploy.errors import Interrupted

_PATIENCE_SECONDS = 0.5


class RayEngine:
    """Runs a server and a client app until the server is done or Ctrl-C or SIGTERM arrives; for a single run.

    The constructor starts Ray, whose processes live only as long as the thread that called it.
    """

    def __init__(self, settings: EngineSettings, learners: int) -> None:
        self._settings = settings
        self._learners = learners
        self._actors = start_ray(settings)
        self._stop = threading.Event()
        self._ended = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C or SIGTERM has been received."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raise `RuntimeError` with a one-line message when Ray itself has died, so that waiting is useless."""
        if not self._stop.is_set():
            check_ray("--resume goes on from the last round")

    def close(self) -> None:
        """Shut Ray down if there is nothing to run after all; `run` does this itself."""
        stop_ray()

    def run(self, client: ClientApp, serve: Callable[[Grid], object]) -> None:
        """Call `serve` with a grid whose nodes run `client`, and return when it returns."""
        # Flower logs tracebacks of failures, but the one-line error that is raised says what matters.
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        per_node = self._settings.learners_per_node
        nodes = AHEAD * self._actors if per_node == "auto" else -(-self._learners // per_node)
        try:
            with interruptible(self._interrupt):
                serve(RayGrid(client, nodes, self._actors, gpus_each(self._settings, self._actors)))
        except Interrupted:
            # The caller checks `stopped`.
            return
        except Exception:
            # If actors do not stop in time, Ray is shut down while the server still uses it: ignore its errors then.
            if not self._stop.is_set():
                raise
        finally:
            self._ended.set()
            stop_ray()

    def _interrupt(self) -> None:
        """Request a stop, and shut Ray down if the run has not ended after `_PATIENCE_SECONDS`."""
        self._stop.set()

        def end_actors() -> None:
            if not self._ended.wait(_PATIENCE_SECONDS):
                stop_ray()

        threading.Thread(target=end_actors, daemon=True).start()
