"""The size on disk of the record that a simulation will write."""

import os
from pathlib import Path

from metaleak.deploy.config.experiment import Experiment
from metaleak.server.learning.meta_learner import sample_size


def record_bytes(experiment: Experiment) -> int:
    """Return about how many bytes the record of `experiment` will have: float32, without headers and index.

    Each recorded round has the parameters that are sent and the meta-gradient of each sampled learner, or under
    secure aggregation only the mean. Raises `ValueError` or `OSError` for data that cannot be loaded.
    """
    federation = experiment.federation()
    # Too little data for the learners is reported first.
    federation.split()
    parameters = sum(value.numel() for value in federation.shared(federation.initial_parameters()).values())
    recorded = experiment.record.rounds
    rounds = experiment.server.rounds if recorded is None else min(recorded, experiment.server.rounds)
    sampled = sample_size(experiment.partition.learners, experiment.server.fraction)
    replies = 1 if any(defense.place == "aggregate" for defense in federation.defenses) else sampled
    return 4 * parameters * rounds * (replies + 1)


def free_bytes(path: Path) -> int:
    """Return how many bytes are free where `path` lies or will lie."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    system = os.statvfs(there)
    return system.f_bavail * system.f_frsize


def size_text(size: float) -> str:
    """Return a number of bytes as text, such as "635 MB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
