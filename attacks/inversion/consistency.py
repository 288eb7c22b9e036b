"""Whether an observation and the questions about it fit each other."""

from torch import Tensor

from metaleak.attacks.attack import Targets
from metaleak.attacks.inversion.gradient_inversion import Problem
from metaleak.attacks.observation import Observation
from metaleak.clients.models import input_weight_of


def check_consistency(observation: Observation, targets: Targets, known: Tensor | None, problem: Problem) -> None:
    """Raise `ValueError` naming the first thing whose shape or range does not fit the rest."""
    if set(observation.gradients) != set(observation.parameters):
        raise ValueError("the observation's gradients and parameters differ in their names")
    if len({len(value) for value in observation.gradients.values()}) != 1:
        raise ValueError("the observation's gradients differ in their number of learners")
    learners = len(next(iter(observation.gradients.values())))
    for name, value in observation.parameters.items():
        if observation.gradients[name].shape[1:] != value.shape:
            found = tuple(observation.gradients[name].shape[1:])
            raise ValueError(f"gradient {name!r} has shape {found}, the parameter {tuple(value.shape)}")
    if targets.examples.ndim != 4:
        raise ValueError(f"targets.examples has shape {tuple(targets.examples.shape)}, not (T, C, H, W)")
    for name, values, limit in (
        ("rows", targets.rows, learners),
        ("positions", targets.positions, observation.ways),
    ):
        if values.shape != (len(targets.examples),):
            raise ValueError(f"targets.{name} has shape {tuple(values.shape)}, not ({len(targets.examples)},)")
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise ValueError(f"targets.{name} holds values outside [0, {limit})")
    expected = (learners, problem.images_of(other=True), *targets.examples.shape[1:])
    if known is not None and known.shape != expected:
        raise ValueError(f"the known set has shape {tuple(known.shape)}, not {expected}")
    first = input_weight_of(observation.model)
    pixel_count = targets.examples[0].numel() if len(targets.examples) else None
    if first is not None and pixel_count not in (None, observation.parameters[first].shape[1]):
        raise ValueError(
            f"target images have {pixel_count} values, {first!r} takes {observation.parameters[first].shape[1]}"
        )
