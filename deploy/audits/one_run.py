"""An audit by one run: many canaries at once, each held or not by a coin of its own."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from metaleak.attacks.evaluation.empirical_epsilon import gaussian_epsilon_of_guesses, one_run_lower_bound
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import MLP
from metaleak.clients.randomness import keyed_uniforms
from metaleak.clients.rules import MAML, Rule, reads_means
from metaleak.defenses import Accounted, Defense, ExampleSet, RecordLevel, SharesNoise
from metaleak.deploy.audits.audit import Audit, Trials
from metaleak.deploy.audits.canaries import LARGE, SHARING, ready, stand_in

_AT_ONCE = {"learners": 1000, "images": 500, "read images": 50}
"""The most canaries of one sum or one learner: a message has a direction for each of them."""

_READERS = 500
"""Query images that measure the effect of each canary of the support set."""

_CALIBRATION = 0.1
"""The fraction of the canaries that sets the threshold."""

_DECIDES = 1e18
"""The weight of the pixel that decides a canary's class."""


def one_run_audit(
    defense: Defense,
    rule: Rule,
    asks: ExampleSet,
    rounds: int,
    trials: Trials,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Return what one run with as many canaries as `trials` proves of `defense`.

    Each canary is one of two opposite inputs, by a fair coin of its own, along a direction that no other has: the
    images of learners' sets for a record-level defense, and learners for one of the shared gradient. The score of a
    canary is what is sent along its direction, added up over the rounds.

    `any_mechanism` is Steinke et al. 2023 (`one_run_lower_bound`), which holds for any mechanism and proves less.
    `lower_bound` is that of a mechanism known to be Gaussian, which adds independent noise along each direction: so
    whether a guess is right does not depend on the other canaries, and each counts as a trial of `audit`. The median
    score of the first tenth is the threshold for the others.

    Raises `ValueError` in one line, which begins with the key at fault, for what cannot be audited.
    """
    signs = np.where(np.array(keyed_uniforms(trials.trials, trials.seed, "one run")) < 0.5, 1.0, -1.0)
    of_images = isinstance(defense, RecordLevel)
    most = _AT_ONCE["learners" if not of_images else "read images" if _read_by_query(rule, asks) else "images"]
    groups = np.array_split(np.arange(len(signs)), -(-len(signs) // most))
    scores = np.zeros(len(signs))
    for number, group in enumerate(groups):
        coins = torch.from_numpy(signs[group])
        acting, delta = ready(defense, rule, rounds, SHARING if of_images else len(group))
        for round in range(1, rounds + 1):
            if isinstance(acting, RecordLevel):
                scores[group] += _of_images(acting, rule, asks, coins, number, trials.seed, round).numpy()
            else:
                scores[group] += _of_learners(acting, coins, int(group[0]), trials.seed, round).numpy()
        if progress is not None:
            progress(int(group[-1]) + 1, len(signs))
    assert isinstance(acting, Accounted)
    accounted = (
        acting.epsilons_after(rounds)[asks] if isinstance(acting, RecordLevel) else acting.epsilon_after(rounds)
    )
    calibration = int(_CALIBRATION * len(signs))
    guessed = scores[calibration:] > np.median(scores[:calibration])
    right = int((guessed == (signs[calibration:] > 0)).sum())
    return Audit(
        accounted=accounted,
        lower_bound=gaussian_epsilon_of_guesses(right, len(guessed), delta=delta, confidence=trials.confidence),
        any_mechanism=one_run_lower_bound(scores, signs > 0, delta=delta, confidence=trials.confidence),
        confidence=trials.confidence,
        delta=delta,
        rounds=rounds,
        trials=len(signs),
    )


def _of_learners(defense: Defense, coins: Tensor, before: int, seed: int, round: int) -> Tensor:
    """Return what is seen of each learner along its own direction; its gradient there is large, with its coin's sign.

    `before` is the number of learners of earlier groups.
    """
    summed = isinstance(defense, SharesNoise)
    seen = torch.zeros_like(coins)
    for learner, coin in enumerate(coins):
        gradient = torch.zeros_like(coins) if summed else torch.zeros(1, dtype=coins.dtype)
        gradient[learner if summed else 0] = LARGE * coin
        sent = stand_in(defense, MAML(), before + learner, seed).defend_shared({"head.weight": gradient}, round)[
            "head.weight"
        ]
        if summed:
            seen += sent
        else:
            seen[learner] = sent[0]
    return seen


def _of_images(
    defense: RecordLevel, rule: Rule, asks: ExampleSet, coins: Tensor, group: int, seed: int, round: int
) -> Tensor:
    """Return what is sent along each image's direction, by the learner or the learners of a group.

    Softmax regression of two classes on a pixel for each canary and one more, which alone decides a canary's class,
    and wrongly: so each contributes the clipping norm along its own pixel, to every mean.
    """
    held = _episode(defense, rule, asks, coins)
    parameters: Parameters = {
        "head.weight": torch.zeros(2, len(coins) + 1, dtype=coins.dtype),
        "head.bias": torch.zeros(2, dtype=coins.dtype),
    }
    parameters["head.weight"][:, -1] = torch.tensor([-_DECIDES, _DECIDES], dtype=coins.dtype)
    seen = torch.zeros_like(coins)
    learners = SHARING if isinstance(defense, SharesNoise) else 1
    for learner in range(learners):
        means = stand_in(defense, rule, group * learners + learner, seed).means(round)
        assert means is not None
        sent, _ = reads_means(rule).released_meta_gradient(MLP(hidden=()), parameters, held, means)
        seen += (sent["head.weight"][1] - sent["head.weight"][0])[:-1]
        # The other learners of a sum send their share of the noise alone.
        held = held._replace(
            support_inputs=torch.zeros_like(held.support_inputs), query_inputs=torch.zeros_like(held.query_inputs)
        )
    # An inner step goes against the gradient.
    return -seen if _read_by_query(rule, asks) else seen


def _episode(defense: RecordLevel, rule: Rule, asks: ExampleSet, coins: Tensor) -> Episode:
    """Return an episode whose set that is asked about consists of the canaries.

    Where that set has an effect on the adapted parameters alone, the query images measure these. For each canary
    there are `_READERS`, each with a threshold of its own: on one side of it an image's gradient has the clipping
    norm, on the other side it is 0. For half of them it is the upper side, for the others the lower one.
    """
    count = len(coins)
    canaries = torch.cat([torch.diag(LARGE * coins), torch.ones(count, 1, dtype=coins.dtype)], dim=1)
    others, labels = torch.zeros(2, count + 1, dtype=coins.dtype), torch.arange(2)
    if isinstance(rule, MAML) and _read_by_query(rule, asks):
        deviation = rule.inner_rate * defense.standard_deviation("support", count) * math.sqrt(2 * rule.inner_steps)
        size = max(1e3 / deviation, LARGE * defense.clip_of("query"))
        thresholds = torch.linspace(-3, 3, _READERS // 2, dtype=coins.dtype).repeat(2 * count) * deviation
        others = torch.zeros(_READERS * count, count + 1, dtype=coins.dtype)
        others[torch.arange(_READERS * count), torch.arange(count).repeat_interleave(_READERS)] = size
        others[:, -1] = -thresholds * size / (2 * _DECIDES)
        labels = torch.arange(2).repeat_interleave(_READERS // 2).repeat(count)
    both = (canaries[:, None, None], torch.zeros(count, dtype=torch.int64)), (others[:, None, None], labels)
    support, query = both if asks == "support" else both[::-1]
    return Episode(*support, *query)


def _read_by_query(rule: Rule, asks: ExampleSet) -> bool:
    """Whether the set that is asked about has an effect on the adapted parameters alone."""
    return asks == "support" and isinstance(rule, MAML)
