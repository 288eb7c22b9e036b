"""Shadow learners, which the adversary simulates with its own images and whose members it knows."""

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.at_once import number_at_once
from metaleak.attacks.attack import Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.rules import Perturb, ReleasedMeans, batch_meta_gradients
from metaleak.defenses import Defense, ExampleMechanism, Place, RandomSource

_AT_ONCE = 4


@dataclass(frozen=True)
class Shadows:
    """S shadow learners of the observation's rule, model and task shape.

    `classes (S, ways)` are those of real learners. `support (S, ways, shots, ...)` and
    `query (S, ways, queries, ...)` are the sets of each shadow, and `others (S, ways, n, ...)` further images of its
    classes, n = `queries` if there are enough. `gradients (S, ...)` are their gradients of the shared parameters
    under the known defenses, and `undefended (S, ...)` the same without the defenses of the shared gradient.
    """

    classes: Tensor
    support: Tensor
    query: Tensor
    others: Tensor
    gradients: Parameters
    undefended: Parameters

    def held(self, asks: Literal["query", "support"]) -> Tensor:
        """Return the images of the query or the support sets, `(S, ways, n, ...)`."""
        return self.query if asks == "query" else self.support

    def questions(self, images: Tensor, first: int) -> Targets:
        """Return `images (S, ways, n, ...)` as targets of their shadows, whose rows begin at `first`."""
        (shadows, ways, each), device = images.shape[:3], images.device
        return Targets(
            images.flatten(0, 2),
            first + torch.arange(shadows, device=device).repeat_interleave(ways * each),
            torch.arange(ways, device=device).repeat_interleave(each).repeat(shadows),
        )


def shadow_learners(
    observation: Observation, own: OwnExamples, count: int, random: RandomSource, noise: RandomSource | None = None
) -> Shadows:
    """Return `count` shadow learners, with the classes of the observation's learners in turn.

    Needs `observation.classes`, with images of all of them in `own`. The same key of `random` gives the same shadows.
    If `noise` is given, their defenses draw from it, so that another key gives the same shadows in another round.
    Raises `ValueError` if a class has too few images to leave one that a shadow does not hold.
    """
    if observation.classes is None:
        raise ValueError("observation.classes: the attack needs the class at each position, got None")
    shots, queries = observation.shots, observation.queries
    others = min(queries, own.least() - shots - queries)
    if others < 1:
        raise ValueError(
            f"a shadow learner needs {shots + queries + 1} of the adversary's own images per class, got "
            f"{own.least()}; raise partition.held_out"
        )
    everyone = torch.arange(count, device=observation.classes.device)
    classes = observation.classes[everyone % len(observation.classes)]
    drawn = torch.stack([own.draw(row, shots + queries + others, random.generator) for row in classes])
    support, query, free = torch.split(drawn, [shots, queries, others], dim=2)
    defenses = observation.defenses or ()
    parts = [
        _sent(observation, support[some], query[some], defenses, noise or random)
        for some in torch.split(everyone, number_at_once(_AT_ONCE, everyone.device))
    ]
    undefended, gradients = (
        {name: torch.cat([part[which][name] for part in parts]) for name in observation.gradients} for which in (0, 1)
    )
    return Shadows(classes, support, query, free, gradients, undefended)


def in_means(observation: Observation, shadows: Shadows) -> Shadows:
    """Return the shadows with gradients as the server would see them.

    If the server sees the mean of N learners, each shadow's row becomes the mean of these N and itself, so that its
    images are hidden by the same other images as those of the real learners.
    """
    if observation.mean_of == 1:
        return shadows
    count = observation.mean_of
    gradients, undefended = (
        {name: (count * observation.gradients[name][:1] + own) / (count + 1) for name, own in sent.items()}
        for sent in (shadows.gradients, shadows.undefended)
    )
    return replace(shadows, gradients=gradients, undefended=undefended)


def with_example(
    observation: Observation,
    shadows: Shadows,
    shadow: int,
    asks: Literal["query", "support"],
    images: Tensor,
    positions: Tensor,
    random: RandomSource,
) -> Parameters:
    """Return the gradients of one shadow learner that holds each of B images in turn, `(B, ...)`.

    Each of `images (B, ...)` replaces the first image at its label position in `positions (B,)` in the attacked set.
    The defenses draw from `random`. This takes one meta-gradient per image.
    """
    parts = []
    count = number_at_once(_AT_ONCE, positions.device)
    for places in torch.split(torch.arange(len(positions), device=positions.device), count):
        sets = {"support": shadows.support[shadow], "query": shadows.query[shadow]}
        held = {which: images.expand(len(places), *images.shape).clone() for which, images in sets.items()}
        everyone = torch.arange(len(places), device=places.device)
        held[asks][everyone, positions[places], 0] = images[places]
        sent = _sent(observation, held["support"], held["query"], observation.defenses or (), random)
        parts.append(sent[1])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def among_shadows(observation: Observation, shadows: Shadows) -> Observation:
    """Return the observation with the shadows, after `in_means`, as further rows after those of the real learners."""
    sent = in_means(observation, shadows).gradients
    return replace(
        observation,
        gradients={name: torch.cat([value, sent[name]]) for name, value in observation.gradients.items()},
        classes=None,
    )


def _means(defenses: tuple[Defense, ...], random: RandomSource, shares: tuple[str, ...]) -> ReleasedMeans | None:
    """Return the defense of means over examples, or `None`; each mean of each learner has its own noise."""
    numbers = itertools.count()
    for defense in defenses:
        if isinstance(defense, ExampleMechanism):
            return ReleasedMeans(
                defense, lambda reading, step: RandomSource.of(random.key, "example", next(numbers)), shares
            )
    return None


def _episodes(support: Tensor, query: Tensor, ways: int, count: int) -> list[Episode]:
    """Return the `count` episodes that a message averages, of `support (S, ways m shots, ...)` and `query`."""

    def parts(images: Tensor) -> list[Tensor]:
        by_way = images.reshape(len(images), ways, -1, *images.shape[2:])
        return [part.flatten(1, 2) for part in torch.chunk(by_way, count, dim=2)]

    def labels(images: Tensor) -> Tensor:
        each = images.shape[1] // ways
        return torch.arange(ways, device=images.device).repeat_interleave(each).expand(len(images), -1)

    return [
        Episode(held, labels(held), asked, labels(asked))
        for held, asked in zip(parts(support), parts(query), strict=True)
    ]


def _sent(
    observation: Observation,
    support: Tensor,
    query: Tensor,
    defenses: tuple[Defense, ...],
    random: RandomSource,
) -> tuple[Parameters, Parameters]:
    """Return the meta-gradients of several learners, without and with the defenses of the shared gradient.

    They are of the shared parameters only, since only these are clipped and get noise.
    """

    def defend(place: Place, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for defense in defenses:
            if defense.place == place:
                tensors = defense(tensors, random)
        return tensors

    def defended(place: Place, images: Tensor) -> Tensor:
        return torch.stack([defend(place, {"inputs": one})["inputs"] for one in images.flatten(1, 2)])

    held, asked = defended("support", support), defended("query", query)
    inner: Perturb | None = None
    if any(defense.place == "inner" for defense in defenses):
        inner = lambda gradient, step: defend("inner", gradient)  # noqa: E731 (a function of two lines would say no more)
    shares = tuple(observation.gradients)
    parts = [
        batch_meta_gradients(
            observation.model,
            observation.rule,
            observation.parameters,
            episode,
            [inner] * len(support),
            [_means(defenses, random, shares)] * len(support),
        )[0]
        for episode in _episodes(held, asked, observation.ways, observation.episodes)
    ]
    plain = {name: torch.stack([part[name] for part in parts]).mean(dim=0) for name in shares}
    sent = [defend("shared", {name: value[row] for name, value in plain.items()}) for row in range(len(support))]
    return plain, {name: torch.stack([one[name] for one in sent]) for name in plain}
