"""Which of a learner's two sets an image is in, from the span test's scores for both."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from metaleak.attacks.attack import Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.seeding import generator_for, random_for
from metaleak.attacks.shadows.discriminant import fit_discriminant
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.attacks.shadows.shadow_learners import among_shadows, shadow_learners
from metaleak.attacks.span.span_test import SpanTest

_SHADOWS = 32


def log_odds_of_query(scores: Tensor, query: Tensor, support: Tensor) -> Tensor:
    """Return the log odds that an image is in the query set, given that it is in one of the two, `(T,)`.

    `scores (T, 2)` are the scores of each image for the query and for the support set; `query (M, 2)` and
    `support (N, 2)` are those of images known to be in the query or in the support set. M : N are the prior odds.
    """
    return fit_discriminant(query, support).log_ratio(scores) + math.log(len(query) / len(support))


def query_or_support(observation: Observation, targets: Targets, seed: int) -> Tensor:
    """Return the log odds that each target is in its learner's query set rather than its support set, `(T,)`.

    Every target must be in one of the two sets. A discriminant on the span test's two scores is learned from shadow
    learners, so the observation needs own examples and the learners' defenses.
    """
    own = OwnExamples.of(observation)
    classes = own.tasks(observation.ways, _SHADOWS, generator_for(seed, "classes"))
    shadows = shadow_learners(replace(observation, classes=classes), own, _SHADOWS, random_for(seed, "shadows"))
    real = len(next(iter(observation.gradients.values())))
    query, support = (shadows.questions(images, real) for images in (shadows.query, shadows.support))
    among, asked = among_shadows(observation, shadows), targets.and_then(query).and_then(support)
    answers = [
        SpanTest(asks="query", knows_defenses=True).evidence(among, asked).scores,
        SpanTest(asks="support", knows_defenses=True).evidence(among, asked).scores,
    ]
    parts = torch.split(torch.stack(answers, dim=1), [len(one.rows) for one in (targets, query, support)])
    return log_odds_of_query(*parts)
