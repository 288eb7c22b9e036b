"""How many learners a run computes at once: the experiment's number, or the one that was measured as fastest."""

from metaleak.clients.device import torch_device
from metaleak.deploy.simulate.measured_chunk import measured_chunk
from metaleak.deploy.simulate.prepared import Prepared
from metaleak.server.learning.meta_learner import LARGEST_SHARE, sample_size


def chosen_chunk(ready: Prepared, known: int | None) -> int:
    """Return how many learners are computed at once; `known` is the number that the run began with, if it did.

    It decides the last bits of every number, so a run keeps the first measurement.
    """
    experiment = ready.experiment
    if experiment.engine.chunk != "auto":
        return experiment.engine.chunk
    if known is not None:
        return known
    chunk = measured_chunk(ready.federation, torch_device(experiment.engine.device))
    # A round needs several chunks, to distribute them to any number of actors, and none may fill the memory.
    sampled = sample_size(experiment.partition.learners, experiment.server.fraction)
    size = sum(value.numel() * value.element_size() for value in ready.initial.values())
    while chunk > 1 and (4 * chunk > sampled or chunk * size > LARGEST_SHARE):
        chunk //= 2
    return chunk
