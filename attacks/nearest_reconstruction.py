"""Membership scores from reconstructions: the negative distance of a target to the nearest one."""

import torch
from torch import Tensor

from metaleak.attacks.attack import Answers, Reconstructions, Targets


def answers_by_nearest(made: Reconstructions, targets: Targets, padding: int | None = None) -> Answers:
    """Return every target's negative distance to its learner's nearest reconstruction as score; see `nearest`."""
    distance, _ = nearest(made, targets, padding)
    return Answers(-distance, None, {"distance": distance})


def nearest(made: Reconstructions, targets: Targets, padding: int | None = None) -> tuple[Tensor, Tensor]:
    """Return every target's distance to its learner's nearest reconstruction, and the index of that, `(T,)` each.

    The distance of images is Euclidean, that of token sequences the fraction of positions at which they differ,
    ignoring positions where both have the token `padding`. Raises `ValueError` if reconstructions and targets have
    different shapes, there is no reconstruction, or one is not finite.
    """
    shape, asked = tuple(made.examples.shape[2:]), tuple(targets.examples.shape[1:])
    if shape != asked:
        raise ValueError(f"reconstructions must have the targets' shape {asked}, got {shape}")
    images = targets.examples.is_floating_point()
    if not made.examples.shape[1]:
        raise ValueError("there must be at least one reconstruction for each learner, got none")
    if not bool(made.examples.isfinite().all()):
        raise ValueError("reconstructions must be finite")
    distance = torch.empty(len(targets.rows), device=targets.rows.device)
    places = torch.empty_like(targets.rows)
    # One target at a time, since each is compared with all reconstructions of its learner.
    for place, (row, example) in enumerate(zip(targets.rows.tolist(), targets.examples, strict=True)):
        rebuilt = made.examples[row]
        apart = _distances(rebuilt, example.float()) if images else _differing(rebuilt, example, padding)
        distance[place], places[place] = apart.min(dim=0)
    return distance, places


def _distances(rebuilt: Tensor, image: Tensor) -> Tensor:
    """Return the distance of each of `rebuilt (n, C, H, W)` to an `image (C, H, W)`, `(n,)`."""
    apart: Tensor = torch.linalg.vector_norm((rebuilt - image).flatten(1), dim=1)
    return apart


def _differing(rebuilt: Tensor, sequence: Tensor, padding: int | None) -> Tensor:
    """Return the fraction of positions at which each of `rebuilt (n, T)` differs from `sequence (T,)`, `(n,)`."""
    counted = torch.ones_like(rebuilt, dtype=torch.bool)
    if padding is not None:
        counted = (rebuilt != padding) | (sequence != padding)
    different = (rebuilt != sequence) & counted
    return different.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
