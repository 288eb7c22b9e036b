"""Ray, started on this machine or joined on a cluster."""

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
"""The clean-up after the Ray that `start_ray` started has ended."""

_ending = threading.Lock()
_MOST_ACTORS_A_CORE = 4


def start_ray(settings: EngineSettings) -> int:
    """Start Ray, or join the cluster that `settings` name; return how many CPUs there are to work with.

    A Ray of this machine listens on its loopback address, answers nobody who has not its secret token, and keeps its
    files where only this user can read them. Warns when a cluster is joined that asks for no token. Raises
    `RuntimeError` when this process has a Ray already, and `WrongUsage` for more actors than the cores are worth.
    """
    if ray.is_initialized():
        raise RuntimeError("Ray runs in this process already: call ray.shutdown() first")
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
            f"engine.actors: {cpus} on {cores} cores, where at most {_MOST_ACTORS_A_CORE * cores} are started: each "
            "is a process of its own, and more than one a core computes nothing sooner"
        )
    inherited = {
        # Flower would ask Ray for it otherwise: the processes that Ray starts ahead then serve as actors.
        "PYTHONPATH": paths,
        # Ray would retry a job that does not fit into memory for ever.
        "RAY_task_oom_retries": os.environ.get("RAY_task_oom_retries", "1"),  # noqa: SIM112 (Ray's own name)
    }
    with ExitStack() as begun:
        # Ray sets a variable of its own.
        begun.callback(_restore, {name: os.environ.get(name) for name in (*inherited, "PYTHONBREAKPOINT")})
        os.environ.update(inherited)
        # Not where TMPDIR points: the path of a Unix socket has little room.
        folder = tempfile.mkdtemp(prefix="metaleak-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
        begun.callback(shutil.rmtree, folder, ignore_errors=True)
        begun.callback(_read_authentication_anew)
        begun.callback(ray.shutdown)
        with _closed_to_others():
            # Never join a cluster that happens to run on this machine, unless its address is given.
            # A folder inside: Ray opens the one that it is given to everybody.
            start(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=f"{folder}/ray")
        _after_ray.push(begun.pop_all())
    return cpus


def lost_process() -> str | None:
    """Return the process of this machine's Ray that has died, of those that it cannot do without, or `None`."""
    node: Any = ray._private.worker._global_node
    dead = [] if node is None else [kind for kind, _ in node.dead_processes()]
    return next((kind for kind in dead if kind in ("raylet", "gcs_server")), None)


def check_ray(go_on: str) -> None:
    """Raise `RuntimeError` in one line, which ends with how to `go_on`, when Ray itself has died."""
    lost = lost_process()
    if lost is not None:
        raise RuntimeError(f"Ray's process {lost} has died; {go_on}")


def stop_ray() -> None:
    """End Ray, or leave the cluster, and undo what starting it has changed; may be called again, from any thread."""
    with _ending:
        ray.shutdown()
        _after_ray.close()


def _init(**arguments: Any) -> None:
    """Call `ray.init`, and keep what SIGTERM does: Ray would leave the process at once."""
    at_end = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**arguments)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_end)


@contextmanager
def _closed_to_others() -> Iterator[None]:
    """Have the Ray that starts inside the block ask for a new token, and listen on the loopback address alone.

    Its processes inherit both in their environment, and this one keeps the token in Ray's memory.
    """
    # The only way to make Ray use the loopback address, which it otherwise replaces by a public one.
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
    """Give variables of this process's environment the values that they had, `None` for none."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _read_authentication_anew() -> None:
    """Make Ray drop its token and read the environment again, which it otherwise does once."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def gpus_each(settings: EngineSettings, workers: int) -> float:
    """Return the part of a GPU that each of `workers` gets; Ray counts in ten-thousandths."""
    if settings.device == "cpu":
        return 0.0
    if settings.ray_address is None:
        count = float(torch.cuda.device_count()) if torch.cuda.is_available() else 0.0
    else:
        count = _resources().get("GPU", 0.0)
    if 0 < count < workers:
        # As many on each: with two thirds of a GPU for each of three workers the third would find none.
        return int(10_000 / math.ceil(workers / count)) / 10_000
    # More than one, and it must be whole.
    return float(int(count / workers))


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
