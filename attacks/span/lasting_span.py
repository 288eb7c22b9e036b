"""Image noise over rounds: what of a learner's row spaces lasts, and what its noisy images have in common.

Noise that is drawn anew in every round turns the noisy images of a learner and leaves its clean ones where they are.
So the intersection of its row spaces is the span of the set without noise. Taken off, what is left of each row space
is the span of the noisy images alone, and the rounds' noise is independent: given the image that is asked about, the
likelihoods of the rounds' spaces multiply.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.attack import Progress, Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Round, Rounds
from metaleak.attacks.span.noisy_images import noisy_precision, noisy_span_evidence
from metaleak.attacks.span.predicted_coefficients import dense_input
from metaleak.attacks.span.spectrum import row_space_above_noise

_LASTS = 0.99
"""A direction lasts where this part of its length, at least, is in another round's row space."""

_ENOUGH = 3
"""Rounds of a learner after which the intersection of its row spaces is known."""

_OWN = 300
"""Own images whose mean evidence is a learner's null."""


def noisy_images_over_rounds(
    rounds: Rounds,
    targets: Targets,
    asks: Literal["query", "support"],
    deviation: float,
    progress: Progress | None = None,
) -> Tensor:
    """Return the log-likelihood ratio of each target, `(T,)`, where the set that is asked about is noisy.

    `deviation` is that of the noise on the images asked about, in pixel values. Each ratio is relative to the mean of
    own images under the same learner. The observations need `own_examples`.
    """
    lasting = lasting_spans(rounds, len(rounds[0].rows))
    spaces = _NoisySpaces(rounds[0].observation, lasting, deviation)
    scores = torch.zeros(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
    for number in range(len(rounds)):
        _add(
            scores,
            rounds[number],
            targets,
            lambda seen, learner, row, images: spaces.evidence(seen, learner, row, images, asks),
        )
        if progress is not None:
            progress(number + 1, len(rounds))
    return scores


def clean_images_over_rounds(rounds: Rounds, targets: Targets, progress: Progress | None = None) -> Tensor:
    """Return how far each target is inside the span that lasts, `(T,)`, where the other set alone is noisy.

    The score is minus the logarithm of the part of the target's squared norm that lies outside.
    """
    spans = lasting_spans(rounds, len(rounds[0].rows), len(rounds), progress)
    first = dense_input(rounds[0].observation.model)
    images = first.inputs(targets.examples.double())
    scores = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for learner, span in enumerate(spans):
        asked = torch.nonzero(targets.rows == learner).flatten()
        if span is not None and len(asked):
            rest = images[asked] - images[asked] @ span.mT @ span
            outside = rest.square().sum(dim=1) / images[asked].square().sum(dim=1).clamp(min=1e-300)
            # Nearer than float32 tells is as near as can be.
            scores[asked] = -outside.clamp(min=1e-12).log()
    return scores


def lasting_spans(
    rounds: Rounds, learners: int, most: int = _ENOUGH, progress: Progress | None = None
) -> list[Tensor | None]:
    """Return orthonormal rows `(n, P)` of the intersection of each learner's first `most` row spaces, or `None`.

    Of a learner that answered once it is the whole row space, of one that never did `None`.
    """
    spans: list[Tensor | None] = [None] * learners
    seen = [0] * learners

    def narrow(round: Round) -> None:
        gradients = _weights(round.observation)
        for learner, row in enumerate(round.rows.tolist()):
            if row >= 0 and seen[learner] < most:
                basis = row_space_above_noise(gradients[row]).basis
                span = spans[learner]
                spans[learner] = basis if span is None else _intersection(span, basis)
                seen[learner] += 1

    for number in range(len(rounds)):
        narrow(rounds[number])
        if progress is not None:
            progress(number + 1, len(rounds))
        if min(seen) >= most:
            break
    return spans


class _NoisySpaces:
    """Learners' noisy images in each round: their span, without the span that lasts."""

    def __init__(self, observation: Observation, lasting: list[Tensor | None], deviation: float) -> None:
        if observation.own_examples is None:
            raise ValueError("knows_defenses needs the observation's own_examples, which are None")
        first = dense_input(observation.model)
        own = first.inputs(observation.own_examples.double())
        self._first = first
        self._covariance = own.mT @ own / len(own)
        self._null = own[:: -(-len(own) // _OWN)]
        self._lasting = lasting
        self._precision: dict[int, Tensor] = {}
        if first.affine is not None:
            # Scaled with the pixels; by one number, where channels are scaled by several of much the same size.
            deviation *= float(first.affine.gain.double().square().mean().sqrt())
        self._deviation = deviation

    def evidence(
        self, observation: Observation, learner: int, row: int, examples: Tensor, asks: Literal["query", "support"]
    ) -> Tensor:
        """Return the log-likelihood ratios of `examples (t, ...)` in one round, less the mean of own images."""
        span = self._lasting[learner]
        assert span is not None
        basis = row_space_above_noise(_weights(observation)[row]).basis
        held = observation.ways * (observation.shots + observation.queries)
        asked = observation.ways * observation.queries if asks == "query" else held
        if 0 < len(span) < len(basis[:held]):
            basis = _without(basis[:held], span)
        else:
            # Nothing lasts, or one round alone cannot tell what does: the query images make the largest directions.
            span, basis = span[:0], basis[:asked]
        if learner not in self._precision:
            self._precision[learner] = noisy_precision(_off(_off(self._covariance, span).mT, span), self._deviation)
        images = self._first.inputs(examples.double())
        both = _off(torch.cat([images, self._null]), span)
        found = noisy_span_evidence(
            both, basis, self._precision[learner], self._deviation, basis.shape[1] - len(span)
        )
        return found[: len(images)] - found[len(images) :].mean()


def _add(
    scores: Tensor, round: Round, targets: Targets, evidence: Callable[[Observation, int, int, Tensor], Tensor]
) -> None:
    """Add to each learner's `scores (T,)` the evidence in one round."""
    for learner, row in enumerate(round.rows.tolist()):
        asked = torch.nonzero((targets.rows == learner) & (round.positions >= 0)).flatten()
        if row >= 0 and len(asked):
            scores[asked] += evidence(round.observation, learner, row, targets.examples[asked])


def _weights(observation: Observation) -> Tensor:
    """Return the first layer's gradients `(L, H, P)`, without the bias: the 1 of every image bears no noise."""
    return observation.gradients[dense_input(observation.model).weight]


def _intersection(span: Tensor, basis: Tensor) -> Tensor:
    """Return orthonormal rows of what `span (n, P)` and `basis (m, P)` have in common, up to noise; at most n."""
    left, values, _ = torch.linalg.svd(span @ basis.mT, full_matrices=False)
    common: Tensor = left[:, values > _LASTS].mT @ span
    return common


def _off(vectors: Tensor, span: Tensor) -> Tensor:
    return vectors - vectors @ span.mT @ span


def _without(basis: Tensor, span: Tensor) -> Tensor:
    """Return orthonormal rows of what is left of `basis (m, P)` when `span (n, P)` is taken off, m - n of them."""
    left = _off(basis, span)
    values, vectors = torch.linalg.eigh(left @ left.mT)
    kept = len(basis) - len(span)
    rest: Tensor = (vectors[:, -kept:] / values[-kept:].clamp(min=1e-300).sqrt()).mT @ left
    return rest
