"""Shadow learners: learners that the adversary simulates with its own images, whose truth it knows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.alignment.own_examples import OwnExamples
from metaleak.attacks.observation import Observation
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.rules import Perturb, batch_meta_gradients
from metaleak.defenses import Defense, Place, RandomSource

_AT_ONCE = 4


@dataclass(frozen=True)
class Shadows:
    """S shadow learners of the observation's rule, model and task shape.

    `classes (S, ways)` are like real learners'. `support (S, ways, shots, ...)`, `query (S, ways, queries, ...)` are
    what each holds, `others (S, ways, n, ...)` further images of its classes, `queries` of them while there are
    enough. `gradients (S, ...)` are what it
    sends, by the known defenses, and `undefended (S, ...)` what it would have sent without those of the shared
    gradient.
    """

    classes: Tensor
    support: Tensor
    query: Tensor
    others: Tensor
    gradients: Parameters
    undefended: Parameters


def shadow_learners(observation: Observation, own: OwnExamples, count: int, random: RandomSource) -> Shadows:
    """Return `count` shadow learners with the classes of the observation's learners in turn.

    Needs `observation.classes`, all of them present in `own`. The same key of `random` gives the same shadows.
    Raises `ValueError` when a class has no image left that a shadow does not hold.
    """
    if observation.classes is None:
        raise ValueError("needs the class at each position, which the observation does not carry")
    shots, queries = observation.shots, observation.queries
    others = min(queries, own.least() - shots - queries)
    if others < 1:
        raise ValueError(
            f"a shadow learner needs {shots + queries + 1} of the adversary's own images a class, there are "
            f"{own.least()}; raise partition.held_out"
        )
    classes = observation.classes[torch.arange(count) % len(observation.classes)]
    drawn = torch.stack([own.draw(row, shots + queries + others, random.generator) for row in classes])
    support, query, free = torch.split(drawn, [shots, queries, others], dim=2)
    defenses = observation.defenses or ()
    parts = [
        _sent(observation, support[some], query[some], defenses, random)
        for some in torch.split(torch.arange(count), _AT_ONCE)
    ]
    undefended, gradients = (
        {name: torch.cat([part[which][name] for part in parts]) for name in observation.parameters}
        for which in (0, 1)
    )
    return Shadows(classes, support, query, free, gradients, undefended)


def _sent(
    observation: Observation,
    support: Tensor,
    query: Tensor,
    defenses: tuple[Defense, ...],
    random: RandomSource,
) -> tuple[Parameters, Parameters]:
    """Return the meta-gradients of a few learners without and with the defenses of the shared gradient."""

    def defend(place: Place, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for defense in defenses:
            if defense.place == place:
                tensors = defense(tensors, random)
        return tensors

    def defended(place: Place, images: Tensor) -> Tensor:
        return torch.stack([defend(place, {"inputs": one})["inputs"] for one in images.flatten(1, 2)])

    def labels(images: Tensor) -> Tensor:
        return torch.arange(images.shape[1]).repeat_interleave(images.shape[2]).expand(len(images), -1)

    episodes = Episode(
        defended("support", support),
        labels(support),
        defended("query", query),
        labels(query),
    )
    inner: Perturb | None = None
    if any(defense.place == "inner" for defense in defenses):
        inner = lambda gradient, step: defend("inner", gradient)  # noqa: E731 (a function of two lines would say no more)
    plain, _ = batch_meta_gradients(
        observation.model, observation.rule, observation.parameters, episodes, [inner] * len(support)
    )
    sent = [defend("shared", {name: value[row] for name, value in plain.items()}) for row in range(len(support))]
    return plain, {name: torch.stack([one[name] for one in sent]) for name in plain}
