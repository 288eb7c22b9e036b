"""Ray, started on this machine or joined on a cluster."""

import logging
import os
import sys
from functools import partial

import ray
import torch

from metaleak.deploy.cores import usable_cores
from metaleak.deploy.experiment import EngineSettings


def start_ray(settings: EngineSettings) -> int:
    """Start Ray, or join the cluster that `settings` name; return how many CPUs there are to work with."""
    paths = os.pathsep.join(sys.path)
    start = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR)
    if settings.ray_address is not None:
        start(address=settings.ray_address, runtime_env={"env_vars": {"PYTHONPATH": paths}})
        return max(1, int(_resources().get("CPU", 1)))
    cpus = settings.actors or usable_cores()
    # Inherited, where Flower would ask Ray for it: the processes that Ray starts ahead then serve as actors.
    os.environ["PYTHONPATH"] = paths
    # A job that does not fit into the memory would be tried for ever.
    os.environ.setdefault("RAY_task_oom_retries", "1")
    # Not a cluster that happens to run on this machine: that has to be asked for.
    start(address="local", num_cpus=cpus, include_dashboard=False)
    return cpus


def gpus_each(settings: EngineSettings, workers: int) -> float:
    """Return the part of a GPU that each of `workers` gets; Ray counts in ten-thousandths."""
    if settings.device == "cpu":
        return 0.0
    if settings.ray_address is None:
        count = float(torch.cuda.device_count()) if torch.cuda.is_available() else 0.0
    else:
        count = _resources().get("GPU", 0.0)
    share = int(10_000 * count / workers) / 10_000
    # More than one, and it must be whole.
    return share if share < 1 else float(int(share))


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
