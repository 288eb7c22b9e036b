"""Reconstructions and statistics of targets from an inversion that started at them."""

import torch
from torch import Tensor
from torch.func import vmap

from metaleak.attacks.inversion.gradient_inversion import Inversion, Problem, Unknowns
from metaleak.attacks.inversion.image_space import Coordinates
from metaleak.clients.episode import Episode, Parameters


def read_outcome(
    problem: Problem, inside: Coordinates, start: Unknowns, found: Inversion, known: Tensor | None, slots: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the targets' reconstructions as images, and their statistics `(T,)` by name."""
    here = torch.arange(len(slots), device=slots.device)
    prior, made = start.asked[here, slots], found.unknowns.asked[here, slots]
    statistics = {
        # The coordinates are orthonormal, so distances in them are distances in pixels.
        "distance": (made - prior).flatten(1).norm(dim=1),
        "class_kept": _class_kept(problem, inside, found.unknowns, known, prior, made),
        "fit_loss": found.fit_loss,
        "loss": found.loss,
        "outside": inside.outside(made - prior),
    }
    if inside.basis is not None:
        # A baseline without reconstruction: how far the target is outside of the gradient's row space.
        statistics["outside_prior"] = inside.outside(prior) / (prior.flatten(1).norm(dim=1) + 1e-12)
    return inside.leave(made[:, None])[:, 0], statistics


def _class_kept(
    problem: Problem, inside: Coordinates, found: Unknowns, known: Tensor | None, prior: Tensor, made: Tensor
) -> Tensor:
    """Return 1 if target and reconstruction are assigned to the same class, else 0, `(T,)`.

    The paper does not state the classifier. Here it is the sent model, adapted to the set that is not attacked, known
    or as reconstructed: the adversary's only classifier for this learner's classes.
    """
    other = known if known is not None else found.other
    assert other is not None
    labels = (
        problem.labels(other.device, other=True)
        if found.labels is None
        else found.labels[:, -other.shape[1] :].softmax(dim=2)
    )
    own = {name: value for name, value in inside.parameters.items() if name == inside.first}

    def classes(own: Parameters, images: Tensor, labels: Tensor, both: Tensor) -> Tensor:
        parameters = {**inside.parameters, **own}
        adapted = problem.rule.adapt(problem.model, parameters, Episode(images, labels, images, labels))
        return problem.model(adapted, both).argmax(dim=1)

    both = torch.stack([prior, made], dim=1)
    classed = vmap(classes, in_dims=(0, 0, None if found.labels is None else 0, 0))(own, other, labels, both)
    return (classed[:, 0] == classed[:, 1]).float()
