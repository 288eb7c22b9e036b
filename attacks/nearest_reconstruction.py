"""Membership scores of an attack that reconstructs: how near a target is to the nearest of what it rebuilt."""

import torch
from torch import Tensor

from metaleak.attacks.attack import Answers, Reconstructions, Targets


def answers_by_nearest(made: Reconstructions, targets: Targets, padding: int | None = None) -> Answers:
    """Return the negative distance of every target to the nearest reconstruction of its learner; see `nearest`."""
    distance, _ = nearest(made, targets, padding)
    return Answers(-distance, None, {"distance": distance})


def nearest(made: Reconstructions, targets: Targets, padding: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the distance of every target to the nearest reconstruction of its learner, and its place, `(T,)` each.

    Images are compared by their Euclidean distance, sequences of tokens by the part of places at which they differ;
    where both have the token `padding` the place does not count. Raises `ValueError` where reconstructions and
    targets have different shapes, there is no reconstruction, or one is not finite.
    """
    shape, asked = tuple(made.examples.shape[2:]), tuple(targets.examples.shape[1:])
    if shape != asked:
        raise ValueError(f"reconstructions have shape {shape}, targets {asked}")
    images = targets.examples.is_floating_point()
    if not made.examples.shape[1]:
        raise ValueError("nothing was rebuilt: there must be at least one reconstruction of each learner")
    if not bool(made.examples.isfinite().all()):
        raise ValueError("reconstructions must be finite")
    distance = torch.empty(len(targets.rows), device=targets.rows.device)
    places = torch.empty_like(targets.rows)
    # Targets one by one: each is compared with all that was rebuilt of its learner.
    for place, (row, example) in enumerate(zip(targets.rows.tolist(), targets.examples, strict=True)):
        rebuilt = made.examples[row]
        apart = _distances(rebuilt, example.float()) if images else _differing(rebuilt, example, padding)
        distance[place], places[place] = apart.min(dim=0)
    return distance, places


def _distances(rebuilt: Tensor, image: Tensor) -> Tensor:
    """Return the distance of each of `rebuilt (n, C, H, W)` to an image `(C, H, W)`, `(n,)`."""
    apart: Tensor = torch.linalg.vector_norm((rebuilt - image).flatten(1), dim=1)
    return apart


def _differing(rebuilt: Tensor, sequence: Tensor, padding: int | None) -> Tensor:
    """Return at which part of its places each of `rebuilt (n, T)` differs from a sequence `(T,)`, in [0, 1]."""
    counted = torch.ones_like(rebuilt, dtype=torch.bool)
    if padding is not None:
        counted = (rebuilt != padding) | (sequence != padding)
    different = (rebuilt != sequence) & counted
    return different.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
