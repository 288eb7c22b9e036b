"""Noise on images over several rounds: the intersection of a learner's row spaces, and the rest of each of them.

Noise that is drawn anew in every round changes the set that it is added to, but not the other set. So the
intersection of a learner's row spaces is the span of the set without noise. The rest of each row space is the span of
the noisy images. Given the target, the noise of different rounds is independent, so the likelihoods of the rounds
multiply. The intersection is computed from the first rounds: once a network has learned a clean image well, the
image's contribution to the gradient is lost in rounding.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.at_once import for_each
from metaleak.attacks.attack import Progress, Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Evidence, Round, Rounds, evidence_of
from metaleak.attacks.span.noisy_images import evidence_of_projection, noisy_precision
from metaleak.attacks.span.predicted_coefficients import dense_input
from metaleak.attacks.span.spectrum import part_outside, row_space_above_noise

_COMMON = 0.99
"""A direction is in the intersection if at least this fraction of its length is in another round's row space."""

_ENOUGH = 3
"""The number of a learner's rounds from which the intersection of its row spaces is computed."""

_OWN = 300
"""The number of the adversary's own images whose mean evidence is the baseline for a learner."""


def noisy_images_over_rounds(
    rounds: Rounds,
    targets: Targets,
    asks: Literal["query", "support"],
    deviation: float,
    progress: Progress | None = None,
) -> Tensor:
    """Return the log-likelihood ratio of each target, `(T,)`, if the attacked set is noisy.

    `deviation` is the standard deviation of the noise on the attacked set's images, in pixel values. Each ratio is
    relative to the mean over the adversary's own images for the same learner. The observations need `own_examples`.
    """
    found, answers = intersections(rounds)
    # An intersection needs two rounds.
    spans = [
        None if span is None else span[: len(span) * (count > 1)] for span, count in zip(found, answers, strict=True)
    ]
    spaces = _NoisySpaces(rounds[0].observation, spans, deviation)

    def of_round(round: Round) -> Evidence:
        return {"ratios": spaces.of_round(round, targets, asks)}

    scores = torch.zeros(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
    for number in range(len(rounds)):
        scores += evidence_of(rounds, number, of_round)["ratios"]
        if progress is not None:
            progress(number + 1, len(rounds))
    return scores


def clean_images_over_rounds(rounds: Rounds, targets: Targets, progress: Progress | None = None) -> Tensor:
    """Return how close each target is to the intersection of row spaces, `(T,)`, if only the other set is noisy.

    The score is minus the logarithm of the fraction of the target's squared norm that lies outside.
    """
    spans, _ = intersections(rounds, progress)
    first = dense_input(rounds[0].observation.model)
    images = first.inputs(targets.examples.double())
    scores = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for learner, span in enumerate(spans):
        asked = targets.places_of(learner)
        if span is not None and len(asked):
            # Distances below the precision of float32 count as equal.
            scores[asked] = -part_outside(images[asked], span).clamp(min=1e-12).log()
    return scores


def intersections(rounds: Rounds, progress: Progress | None = None) -> tuple[list[Tensor | None], list[int]]:
    """Return each learner's intersection of row spaces, and the number of rounds that it is computed from.

    Intersections have orthonormal rows `(n, P)` and are over the learner's first three answers at most. For a learner
    that answered once it is the whole row space, for one that never did it is `None`.
    """
    spans: list[Tensor | None] = []
    seen: list[int] = []

    def narrow(round: Round) -> None:
        gradients, rows = _weights(round.observation), round.rows.tolist()
        spans.extend([None] * (len(rows) - len(spans)))
        seen.extend([0] * (len(rows) - len(seen)))

        def of_learner(learner: int) -> None:
            if rows[learner] >= 0 and seen[learner] < _ENOUGH:
                basis = row_space_above_noise(gradients[rows[learner]]).basis
                span = spans[learner]
                spans[learner] = basis if span is None else _intersection(span, basis)
                seen[learner] += 1

        for_each(range(len(rows)), of_learner)

    for number in range(len(rounds)):
        narrow(rounds[number])
        if progress is not None:
            progress(number + 1, len(rounds))
        if min(seen) >= _ENOUGH:
            break
    return spans, seen


@dataclass(frozen=True)
class _Intersection:
    """The intersection of a learner's row spaces, orthonormal `rows (n, P)`, and its effect on the rest.

    Orthogonal to it, noisy images have the precision W - `reduction' reduction`, with `reduction (n, P)`; see
    `_NoisySpaces`. `null (m,)` are the squared norms of own images' components orthogonal to it.
    """

    rows: Tensor
    reduction: Tensor
    null: Tensor


class _NoisySpaces:
    """The evidence of each round's row space without the intersection: the span of the noisy images."""

    def __init__(self, observation: Observation, spans: list[Tensor | None], deviation: float) -> None:
        if observation.own_examples is None:
            raise ValueError("knows_defenses needs the observation's own_examples, which are None")
        first = dense_input(observation.model)
        own = first.inputs(observation.own_examples.double())
        self._first = first
        self._null = own[:: -(-len(own) // _OWN)]
        if first.affine is not None:
            # Noise is scaled like the pixels; one factor stands for those of all channels, which are similar.
            deviation *= float(first.affine.gain.double().square().mean().sqrt())
        self._deviation = deviation
        self._precision = noisy_precision(own.mT @ own / len(own), deviation)
        self._without_span = self._orthogonal_to(own[:0])
        self._intersections: list[_Intersection | None] = [None] * len(spans)

        def orthogonal(learner: int) -> None:
            span = spans[learner]
            self._intersections[learner] = None if span is None else self._orthogonal_to(span)

        for_each(range(len(spans)), orthogonal)

    def _orthogonal_to(self, span: Tensor) -> _Intersection:
        """Return a span S `(n, P)` with its effect on W, the inverse of the noisy images' second moment.

        For components orthogonal to the span W becomes the inverse of a block: W - W S' (S W S')^-1 S W.
        """
        through = span @ self._precision
        root = torch.linalg.cholesky(through @ span.mT)
        reduction = torch.linalg.solve_triangular(root, through, upper=False)
        return _Intersection(span, reduction, _squares(self._null) - _squares(self._null @ span.mT))

    def of_round(self, round: Round, targets: Targets, asks: Literal["query", "support"]) -> Tensor:
        """Return the log-likelihood ratios in one round, `(T,)`, 0 for targets that cannot be in its sets."""
        rows = round.rows.tolist()
        found = torch.zeros(len(targets.rows), dtype=torch.float64, device=targets.rows.device)

        def of_learner(learner: int) -> None:
            asked = targets.places_of(learner)
            asked = asked[round.positions[asked] >= 0]
            if rows[learner] >= 0 and len(asked):
                images = targets.examples[asked]
                found[asked] = self._evidence(round.observation, learner, rows[learner], images, asks)

        for_each(range(len(rows)), of_learner)
        return found

    def _evidence(
        self, observation: Observation, learner: int, row: int, examples: Tensor, asks: Literal["query", "support"]
    ) -> Tensor:
        """Return the log-likelihood ratios of `examples (t, ...)` in one round, minus the mean over own images."""
        common = self._intersections[learner]
        assert common is not None
        basis = row_space_above_noise(_weights(observation)[row]).basis
        held = observation.ways * (observation.shots + observation.queries)
        asked = observation.ways * observation.queries if asks == "query" else held
        if len(common.rows):
            basis = _without(basis[:held], common.rows)
        else:
            # There is no intersection, or one round only: the query images dominate the largest directions.
            common, basis = self._without_span, basis[:asked]
        if not len(basis):
            return examples.new_zeros(len(examples), dtype=torch.float64)
        images = self._first.inputs(examples.double())
        rest = torch.cat([_squares(images) - _squares(images @ common.rows.mT), common.null])
        # The basis is orthogonal to the span, so components along the span do not affect the projections.
        projection = torch.cat([images, self._null]) @ basis.mT
        reduction = basis @ common.reduction.mT
        form = basis @ self._precision @ basis.mT - reduction @ reduction.mT
        distance = (rest - _squares(projection)).clamp(min=0)
        found = evidence_of_projection(projection, distance, form, self._deviation, basis.shape[1] - len(common.rows))
        return found[: len(images)] - found[len(images) :].mean()


def _weights(observation: Observation) -> Tensor:
    """Return the first layer's gradients `(L, H, P)` without the bias, whose input of 1 has no noise."""
    return observation.gradients[dense_input(observation.model).weight]


def _intersection(span: Tensor, basis: Tensor) -> Tensor:
    """Return orthonormal rows of the intersection of `span (n, P)` and `basis (m, P)`, up to noise; at most n."""
    left, values, _ = torch.linalg.svd(span @ basis.mT, full_matrices=False)
    common: Tensor = left[:, values > _COMMON].mT @ span
    return common


def _squares(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=1)


def _without(basis: Tensor, span: Tensor) -> Tensor:
    """Return orthonormal rows of the part of `basis (m, P)` that is orthogonal to `span (n, P)`.

    There are fewer than m by the number of the span's directions that lie in the basis.
    """
    left = basis - basis @ span.mT @ span
    values, vectors = torch.linalg.eigh(left @ left.mT)
    kept = values > 1 - _COMMON**2
    rest: Tensor = (vectors[:, kept] / values[kept].sqrt()).mT @ left
    return rest
