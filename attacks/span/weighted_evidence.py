"""Evidence weighted by a discriminant that is learned from shadow learners in the same rounds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.attack import Progress, Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Round, Rounds
from metaleak.attacks.seeding import generator_for, random_for
from metaleak.attacks.shadows.discriminant import fit_discriminant
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.attacks.shadows.shadow_learners import among_shadows, shadow_learners
from metaleak.attacks.shadows.weighted_rounds import RoundRatios, weighted_over

_SHADOWS = 32

Features = Callable[[Observation, Targets, int], Tensor]
"""Called with an observation, targets and the number of rows of real learners; returns features `(T, F)`."""


def weighted_over_rounds(
    rounds: Rounds,
    targets: Targets,
    asks: Literal["query", "support"],
    features: Features,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Return the log-likelihood ratio of each target from its features in all rounds, `(T,)`.

    In every round the same shadow learners are simulated with the adversary's own images, at that round's parameters
    and with fresh noise; see `weighted` for how the rounds are combined. The observations need own examples and
    defenses.
    """
    return weighted_over(rounds, lambda round: _ratios(round, targets, asks, features, seed), progress)


def weighted_evidence(
    observation: Observation, targets: Targets, asks: Literal["query", "support"], features: Features, seed: int
) -> Tensor:
    """Return the log-likelihood ratio of each target from its features in one round, `(T,)`."""
    return _learned(observation, targets, asks, features, seed, 0)[0]


def _ratios(
    round: Round, targets: Targets, asks: Literal["query", "support"], features: Features, seed: int
) -> RoundRatios:
    places, asked = round.asked(targets)
    found, members, others = _learned(round.observation, asked, asks, features, seed, round.number)
    ratios = torch.full((len(targets.rows),), torch.nan, dtype=torch.float64, device=targets.rows.device)
    ratios[places] = found
    return RoundRatios(ratios, round.chances_of(targets), members, others)


def _learned(
    observation: Observation,
    asked: Targets,
    asks: Literal["query", "support"],
    features: Features,
    seed: int,
    round: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-likelihood ratios of targets, and of images that shadow learners hold and do not hold."""
    own = OwnExamples.of(observation)
    classes = own.tasks(observation.ways, _SHADOWS, generator_for(seed, "classes"))
    shadows = shadow_learners(
        replace(observation, classes=classes),
        own,
        _SHADOWS,
        random_for(seed, "shadows"),
        random_for(seed, "noise", round),
    )
    real = len(next(iter(observation.gradients.values())))
    held, free = (shadows.questions(images, real) for images in (shadows.held(asks), shadows.others))
    found = features(among_shadows(observation, shadows), asked.and_then(held).and_then(free), real)
    targeted, members, others = torch.split(found, [len(one.rows) for one in (asked, held, free)])
    learned = fit_discriminant(members, others)
    return learned.log_ratio(targeted), learned.log_ratio(members), learned.log_ratio(others)
