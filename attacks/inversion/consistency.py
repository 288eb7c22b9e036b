"""Checks that an observation and its targets fit together."""

from torch import Tensor

from metaleak.attacks.attack import Targets
from metaleak.attacks.inversion.gradient_inversion import Problem
from metaleak.attacks.observation import Observation
from metaleak.clients.models import input_weight_of


def check_consistency(observation: Observation, targets: Targets, known: Tensor | None, problem: Problem) -> None:
    """Raise `ValueError`, which names the first value whose shape or range does not fit the rest."""
    if set(observation.gradients) != set(observation.parameters):
        raise ValueError("observation.gradients: must have the names of the parameters")
    if len({len(value) for value in observation.gradients.values()}) != 1:
        raise ValueError("observation.gradients: must all be of the same number of learners")
    learners = len(next(iter(observation.gradients.values())))
    for name, value in observation.parameters.items():
        if observation.gradients[name].shape[1:] != value.shape:
            found = tuple(observation.gradients[name].shape[1:])
            raise ValueError(f"gradient {name!r}: must have the parameter's shape {tuple(value.shape)}, got {found}")
    if targets.examples.ndim != 4:
        raise ValueError(f"targets.examples: must have the shape (T, C, H, W), got {tuple(targets.examples.shape)}")
    for name, values, limit in (
        ("rows", targets.rows, learners),
        ("positions", targets.positions, observation.ways),
    ):
        if values.shape != (len(targets.examples),):
            raise ValueError(
                f"targets.{name}: must have the shape ({len(targets.examples)},), got {tuple(values.shape)}"
            )
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise ValueError(f"targets.{name}: must be in [0, {limit})")
    expected = (learners, problem.images_of(other=True), *targets.examples.shape[1:])
    if known is not None and known.shape != expected:
        raise ValueError(f"the known set: must have the shape {expected}, got {tuple(known.shape)}")
    first = input_weight_of(observation.model)
    pixel_count = targets.examples[0].numel() if len(targets.examples) else None
    if first is not None and pixel_count not in (None, observation.parameters[first].shape[1]):
        raise ValueError(
            f"targets.examples: must have {observation.parameters[first].shape[1]} values, as {first!r} takes, "
            f"got {pixel_count}"
        )
