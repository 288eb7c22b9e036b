"""Starting Ray on this machine, or joining a Ray cluster."""

import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import ray
import torch
from ray._private import auto_init_hook, ray_constants
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    AuthenticationTokenLoader,
    Config,
    get_authentication_mode,
)

from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.engines.cores import usable_cores
from metaleak.deploy.errors import WrongUsage

_LOG = logging.getLogger("metaleak")

_after_ray = ExitStack()
"""The clean-up to run when the Ray started by `start_ray` is shut down."""

_ending = threading.Lock()
_MOST_ACTORS_A_CORE = 4


def start_ray(settings: EngineSettings) -> int:
    """Start Ray, or join the cluster given in `settings`; return the number of CPUs available for work.

    A local Ray listens only on the loopback address, requires its secret token, and keeps its files where only this
    user can read them. Logs a warning when the joined cluster does not require a token.

    Raises `RuntimeError` when Ray already runs in this process, and `WrongUsage` for more than 4 actors per core.
    """
    if ray.is_initialized():
        raise RuntimeError("Ray is already running in this process: call ray.shutdown() first")
    # A call after `stop_ray`, from another thread, would start a Ray that is open to others.
    auto_init_hook.enable_auto_connect = False
    paths = os.pathsep.join(sys.path)
    start = partial(_init, log_to_driver=False, logging_level=logging.ERROR)
    if settings.ray_address is not None:
        start(address=settings.ray_address, runtime_env={"env_vars": {"PYTHONPATH": paths}})
        if get_authentication_mode() != AuthenticationMode.TOKEN:
            _LOG.warning(
                "the Ray cluster at %s asks for no token: whoever reaches its ports can run programs there; "
                "see deploy/cluster/README.md",
                settings.ray_address,
            )
        return max(1, int(_resources().get("CPU", 1)))
    cores = usable_cores()
    cpus = settings.actors or cores
    if cpus > _MOST_ACTORS_A_CORE * cores:
        raise WrongUsage(
            f"engine.actors: {cpus} on {cores} cores, where at most {_MOST_ACTORS_A_CORE * cores} are allowed: each "
            "is a separate process, and more than one per core does not speed up the computation"
        )
    inherited = {
        # Otherwise Flower would request it from Ray. Set here, processes that Ray starts in advance become actors.
        "PYTHONPATH": paths,
        # By default Ray retries a job that does not fit into memory forever.
        "RAY_task_oom_retries": os.environ.get("RAY_task_oom_retries", "1"),  # noqa: SIM112 (Ray's own name)
    }
    with ExitStack() as begun:
        # Ray itself sets PYTHONBREAKPOINT.
        begun.callback(_restore, {name: os.environ.get(name) for name in (*inherited, "PYTHONBREAKPOINT")})
        os.environ.update(inherited)
        # Not in TMPDIR, because the path of a Unix socket must be short.
        folder = tempfile.mkdtemp(prefix="metaleak-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
        begun.callback(shutil.rmtree, folder, ignore_errors=True)
        begun.callback(_read_authentication_anew)
        begun.callback(ray.shutdown)
        with _closed_to_others():
            # `local` never joins a cluster that happens to run on this machine.
            # A subfolder, because Ray makes the folder that it is given accessible to all users.
            start(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=f"{folder}/ray")
        _after_ray.push(begun.pop_all())
    return cpus


def lost_process() -> str | None:
    """Return the name of an essential process of the local Ray that has died, or `None`."""
    node: Any = ray._private.worker._global_node
    dead = [] if node is None else [kind for kind, _ in node.dead_processes()]
    return next((kind for kind in dead if kind in ("raylet", "gcs_server")), None)


def check_ray(go_on: str) -> None:
    """Raise `RuntimeError` when Ray itself has died, with a one-line message that ends with `go_on`."""
    lost = lost_process()
    if lost is not None:
        raise RuntimeError(f"Ray's process {lost} has died; {go_on}")


def stop_ray() -> None:
    """Shut Ray down, or leave the cluster, and undo the changes made at its start; safe to repeat in any thread."""
    with _ending:
        ray.shutdown()
        _after_ray.close()


def _init(**arguments: Any) -> None:
    """Call `ray.init`, and restore the handler of SIGTERM: Ray's handler would exit the process at once."""
    at_end = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**arguments)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_end)


@contextmanager
def _closed_to_others() -> Iterator[None]:
    """Make a Ray started inside the block require a new token and listen only on the loopback address.

    Its processes inherit both settings through their environment; in this process Ray keeps the token in memory.
    """
    # The only way to make Ray use the loopback address, which it otherwise replaces with a public one.
    setting, alone = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    closed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), setting: "0"}
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment(closed):
            _read_authentication_anew()
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = alone


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set `variables` in this process's environment inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        _restore(before)


def _restore(variables: Mapping[str, str | None]) -> None:
    """Restore environment variables of this process to these values; `None` unsets a variable."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _read_authentication_anew() -> None:
    """Make Ray drop its token and read the environment again, which it otherwise does only once."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def gpus_each(settings: EngineSettings, workers: int) -> float:
    """Return the number of GPUs, possibly a fraction, for each of `workers`; Ray counts in ten-thousandths."""
    if settings.device == "cpu":
        return 0.0
    if settings.ray_address is None:
        count = float(torch.cuda.device_count()) if torch.cuda.is_available() else 0.0
    else:
        count = _resources().get("GPU", 0.0)
    if 0 < count < workers:
        # A worker cannot span GPUs: with 2/3 of a GPU for each of 3 workers on 2 GPUs, the third would not fit.
        return int(10_000 / math.ceil(workers / count)) / 10_000
    # Ray requires shares above one GPU to be whole numbers.
    return float(int(count / workers))


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
