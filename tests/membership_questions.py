"""Questions about membership put to an attack on a federation, without an experiment, a run or a record."""

from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.attack import Targets
from metaleak.attacks.observation import Observation
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.federation import Federation


def inputs(federation: Federation, images: Tensor) -> Tensor:
    """Return the images of these indices as the learners see them, float32 `(n, C, H, W)` in [0, 1]."""
    return federation.examples().examples[images].to(torch.float32) / 255.0


def held_classes(federation: Federation, learners: list[int], round: int) -> Tensor:
    """Return the class at each of every learner's positions, `(L, ways)`."""
    return torch.stack([federation.learner(learner).drawn(round).classes for learner in learners])


def held_inputs(
    federation: Federation, learners: list[int], round: int, which: Literal["query", "support"]
) -> Tensor:
    """Return one set of every learner, `(L, n, C, H, W)`, ordered by position."""
    drawn = [getattr(federation.learner(learner).drawn(round), which).flatten() for learner in learners]
    return torch.stack([inputs(federation, images) for images in drawn])


def observed(federation: Federation, learners: list[int], round: int = 1) -> Observation:
    """Return what the server sees in `round`, at the initial parameters, and what alignment requires beside it."""
    parameters, task = federation.initial_parameters(), federation.task
    gradients, _ = cohort_meta_gradients(federation.learners(learners), parameters, round)
    own = federation.split().held_out
    return Observation(
        federation.model,
        federation.rule,
        parameters,
        gradients,
        task.ways,
        task.shots,
        task.queries,
        classes=held_classes(federation, learners, round),
        own_examples=inputs(federation, own),
        own_labels=federation.examples().labels[own],
        defenses=federation.defenses,
        input_shape=federation.examples().input_shape,
    )


def questions(
    federation: Federation,
    learners: list[int],
    round: int,
    which: Literal["query", "support"],
    members: int,
    non_members: int,
) -> tuple[Targets, Tensor]:
    """Return at most so many members and non-members of the sets of one round, and `(T,)` which are members.

    A non-member is an image that no learner holds, of the class that stands at its position.
    """
    generator = torch.Generator().manual_seed(federation.seed)
    draws = [federation.learner(learner).drawn(round) for learner in learners]
    places = [
        (row, position, image, int(drawn.classes[position]))
        for row, drawn in enumerate(draws)
        for position, images in enumerate(getattr(drawn, which).tolist())
        for image in images
    ]
    places = [places[place] for place in torch.randperm(len(places), generator=generator).tolist()]
    free = federation.split().non_members
    free = free[torch.randperm(len(free), generator=generator)]
    labels = federation.examples().labels[free]
    unused = {label: free[labels == label].tolist() for label in set(labels.tolist())}
    outside = [(row, position, unused[label].pop()) for row, position, _, label in 10 * places if unused.get(label)]
    asked = [place[:3] for place in places[:members]] + outside[:non_members]
    rows, positions, images = torch.tensor(asked).T
    targets = Targets(examples=inputs(federation, images), rows=rows, positions=positions)
    return targets, torch.arange(len(asked)) < min(members, len(places))
