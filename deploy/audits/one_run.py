"""An audit by one run: many canaries at once, each held or not by a coin of its own."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from metaleak.attacks.evaluation.empirical_epsilon import one_run_lower_bound
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import MLP
from metaleak.clients.randomness import keyed_uniforms
from metaleak.clients.rules import MAML, Rule, reads_means
from metaleak.defenses import Accounted, Defense, ExampleMechanism, ExampleSet, RecordLevel, SharesNoise
from metaleak.deploy.audits.audit import Audit, Trials
from metaleak.deploy.audits.canaries import LARGE, SHARING, ready, stand_in

_MOST = 4000
"""Canaries of one run: each is a direction of its own, and each learner's message has all directions."""

_READERS = 20
"""Query images for each canary of the support set."""

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
    """Return what one run with as many canaries as `trials` proves of `defense` (Steinke et al. 2023).

    Each canary is one of two opposite inputs, by a fair coin of its own, along a direction that no other has: the
    images of one learner's set for a record-level defense, and learners for one of the shared gradient. The score of
    a canary is what is sent along its direction, added up over the rounds. The bound holds for any mechanism
    (`one_run_lower_bound`): it needs no assumption on the noise, one run in the place of thousands, and proves less.

    Raises `ValueError` in one line, which begins with the key at fault, for what cannot be audited.
    """
    most = _MOST // 4 if isinstance(defense, RecordLevel) and _read_by_query(rule, asks) else _MOST
    if trials.trials > most:
        raise ValueError(f"trials: such a run has at most {most} canaries, got {trials.trials}")
    signs = np.where(np.array(keyed_uniforms(trials.trials, trials.seed, "one run")) < 0.5, 1.0, -1.0)
    coins = torch.from_numpy(signs)
    of_sum = trials.trials if not isinstance(defense, ExampleMechanism) else SHARING
    defense, delta = ready(defense, rule, rounds, of_sum)
    scores = torch.zeros(trials.trials, dtype=torch.float64)
    for round in range(1, rounds + 1):
        if isinstance(defense, RecordLevel):
            scores += _of_images(defense, rule, asks, coins, trials.seed, round)
        else:
            scores += _of_learners(defense, coins, trials.seed, round)
        if progress is not None:
            progress(round, rounds)
    assert isinstance(defense, Accounted)
    accounted = (
        defense.epsilons_after(rounds)[asks] if isinstance(defense, RecordLevel) else defense.epsilon_after(rounds)
    )
    bound = one_run_lower_bound(scores.numpy(), signs > 0, delta=delta, confidence=trials.confidence)
    return Audit(accounted, bound, bound, trials.confidence, delta, rounds, trials.trials)


def _of_learners(defense: Defense, coins: Tensor, seed: int, round: int) -> Tensor:
    """Return what is seen of each learner, whose gradient is its coin along its own direction."""
    summed = isinstance(defense, SharesNoise)
    seen = torch.zeros_like(coins)
    for learner, coin in enumerate(coins):
        gradient = torch.zeros_like(coins) if summed else torch.zeros(1, dtype=coins.dtype)
        gradient[learner if summed else 0] = LARGE * coin
        sent = stand_in(defense, MAML(), learner, seed).defend_shared({"head.weight": gradient}, round)["head.weight"]
        if summed:
            seen += sent
        else:
            seen[learner] = sent[0]
    return seen


def _of_images(defense: RecordLevel, rule: Rule, asks: ExampleSet, coins: Tensor, seed: int, round: int) -> Tensor:
    """Return what is sent along each image's direction.

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
    for learner in range(SHARING if isinstance(defense, SharesNoise) else 1):
        means = stand_in(defense, rule, learner, seed).means(round)
        assert means is not None
        sent, _ = reads_means(rule).released_meta_gradient(MLP(hidden=()), parameters, held, means)
        seen += (sent["head.weight"][1] - sent["head.weight"][0])[:-1]
        # The others give nothing but their share of the noise.
        held = held._replace(
            support_inputs=torch.zeros_like(held.support_inputs), query_inputs=torch.zeros_like(held.query_inputs)
        )
    # An inner step goes against the gradient.
    return -seen if _read_by_query(rule, asks) else seen


def _episode(defense: RecordLevel, rule: Rule, asks: ExampleSet, coins: Tensor) -> Episode:
    """Return an episode whose asked set are the canaries.

    Where the set shows in the adapted parameters alone, the query images read these: along each canary there are
    `_READERS`, each of which has the clipping norm for its gradient where the adapted weight is above a threshold of
    its own, and none where it is below.
    """
    count = len(coins)
    canaries = torch.cat([torch.diag(LARGE * coins), torch.ones(count, 1, dtype=coins.dtype)], dim=1)
    others, labels = torch.zeros(2, count + 1, dtype=coins.dtype), torch.arange(2)
    if isinstance(rule, MAML) and _read_by_query(rule, asks):
        deviation = rule.inner_rate * defense.standard_deviation("support", count) * math.sqrt(2 * rule.inner_steps)
        size = max(1e3 / deviation, LARGE * defense.clip_of("query"))
        thresholds = torch.linspace(-3, 3, _READERS, dtype=coins.dtype).repeat(count) * deviation
        others = torch.zeros(_READERS * count, count + 1, dtype=coins.dtype)
        others[torch.arange(_READERS * count), torch.arange(count).repeat_interleave(_READERS)] = size
        others[:, -1] = -thresholds * size / (2 * _DECIDES)
        labels = torch.zeros(_READERS * count, dtype=torch.int64)
    both = (canaries[:, None, None], torch.zeros(count, dtype=torch.int64)), (others[:, None, None], labels)
    support, query = both if asks == "support" else both[::-1]
    return Episode(*support, *query)


def _read_by_query(rule: Rule, asks: ExampleSet) -> bool:
    """Whether the asked set shows in the adapted parameters alone."""
    return asks == "support" and isinstance(rule, MAML)
