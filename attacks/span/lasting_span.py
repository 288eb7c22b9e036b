"""Image noise over rounds: the intersection of a learner's row spaces, and the evidence in the rest of each.

Noise that is drawn anew in every round changes the noisy images of a learner and not its clean ones. So the
intersection of the learner's row spaces is the span of the set without noise. What remains of each row space
without it is the span of the noisy images alone, and the rounds' noise is independent: given the image that is
asked about, the likelihoods of the rounds' spaces multiply. The intersection is taken from the first rounds: once a
network has learned a clean image well, the image's contribution to the gradient is lost in rounding.
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
from metaleak.attacks.span.spectrum import row_space_above_noise

_LASTS = 0.99
"""A direction lasts where this part of its length, at least, is in another round's row space."""

_ENOUGH = 3
"""The rounds of a learner from which the intersection of its row spaces is computed."""

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
    lasting, answers = lasting_spans(rounds)
    # An intersection takes two rounds.
    lasting = [
        None if span is None else span[: len(span) * (count > 1)]
        for span, count in zip(lasting, answers, strict=True)
    ]
    spaces = _NoisySpaces(rounds[0].observation, lasting, deviation)

    def of_round(round: Round) -> Evidence:
        return {"ratios": spaces.of_round(round, targets, asks)}

    scores = torch.zeros(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
    for number in range(len(rounds)):
        scores += evidence_of(rounds, number, of_round)["ratios"]
        if progress is not None:
            progress(number + 1, len(rounds))
    return scores


def clean_images_over_rounds(rounds: Rounds, targets: Targets, progress: Progress | None = None) -> Tensor:
    """Return how close each target is to the span that lasts, `(T,)`, where only the other set is noisy.

    The score is minus the logarithm of the part of the target's squared norm that lies outside.
    """
    spans, _ = lasting_spans(rounds, progress)
    first = dense_input(rounds[0].observation.model)
    images = first.inputs(targets.examples.double())
    scores = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for learner, span in enumerate(spans):
        asked = targets.places_of(learner)
        if span is not None and len(asked):
            rest = images[asked] - images[asked] @ span.mT @ span
            outside = rest.square().sum(dim=1) / images[asked].square().sum(dim=1).clamp(min=1e-300)
            # Distances below the precision of float32 count as equal.
            scores[asked] = -outside.clamp(min=1e-12).log()
    return scores


def lasting_spans(rounds: Rounds, progress: Progress | None = None) -> tuple[list[Tensor | None], list[int]]:
    """Return orthonormal rows `(n, P)` of the intersection of each learner's first three row spaces, or `None`.

    Of a learner that answered once it is the whole row space, of one that never did `None`. Beside them stands how
    often each learner answered, up to three times.
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
class _Lasting:
    """A learner's span that lasts, orthonormal `rows (n, P)`, and what it changes of the noisy images' distribution.

    `reduction (n, P)` is a factor of what the span subtracts from the precision W, `reduction' reduction`; see
    `_NoisySpaces`. `null (m,)` are the squared norms of what of own images is orthogonal to the span.
    """

    rows: Tensor
    reduction: Tensor
    null: Tensor


class _NoisySpaces:
    """Learners' noisy images in each round: their span, without the span that lasts."""

    def __init__(self, observation: Observation, lasting: list[Tensor | None], deviation: float) -> None:
        if observation.own_examples is None:
            raise ValueError("knows_defenses needs the observation's own_examples, which are None")
        first = dense_input(observation.model)
        own = first.inputs(observation.own_examples.double())
        self._first = first
        self._null = own[:: -(-len(own) // _OWN)]
        if first.affine is not None:
            # Scaled with the pixels; by one number, where channels are scaled by several of much the same size.
            deviation *= float(first.affine.gain.double().square().mean().sqrt())
        self._deviation = deviation
        self._precision = noisy_precision(own.mT @ own / len(own), deviation)
        self._without_span = self._orthogonal_to(own[:0])
        self._lasting: list[_Lasting | None] = [None] * len(lasting)

        def orthogonal(learner: int) -> None:
            span = lasting[learner]
            self._lasting[learner] = None if span is None else self._orthogonal_to(span)

        for_each(range(len(lasting)), orthogonal)

    def _orthogonal_to(self, span: Tensor) -> _Lasting:
        """Return a span S `(n, P)` with what it changes of W, the inverse of the noisy images' second moment.

        For images orthogonal to the span that is the inverse of a block: W - W S' (S W S')^-1 S W.
        """
        through = span @ self._precision
        root = torch.linalg.cholesky(through @ span.mT)
        reduction = torch.linalg.solve_triangular(root, through, upper=False)
        return _Lasting(span, reduction, _squares(self._null) - _squares(self._null @ span.mT))

    def of_round(self, round: Round, targets: Targets, asks: Literal["query", "support"]) -> Tensor:
        """Return the log-likelihood ratios `(T,)` in one round, 0 where it cannot hold a target."""
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
        """Return the log-likelihood ratios of `examples (t, ...)` in one round, less the mean of own images."""
        lasting = self._lasting[learner]
        assert lasting is not None
        basis = row_space_above_noise(_weights(observation)[row]).basis
        held = observation.ways * (observation.shots + observation.queries)
        asked = observation.ways * observation.queries if asks == "query" else held
        if len(lasting.rows):
            basis = _without(basis[:held], lasting.rows)
        else:
            # Nothing lasts, or there is one round only: the query images make up the largest directions.
            lasting, basis = self._without_span, basis[:asked]
        if not len(basis):
            return examples.new_zeros(len(examples), dtype=torch.float64)
        images = self._first.inputs(examples.double())
        rest = torch.cat([_squares(images) - _squares(images @ lasting.rows.mT), lasting.null])
        # The basis is orthogonal to the span, whose part of the images does not enter their projections.
        projection = torch.cat([images, self._null]) @ basis.mT
        reduction = basis @ lasting.reduction.mT
        form = basis @ self._precision @ basis.mT - reduction @ reduction.mT
        distance = (rest - _squares(projection)).clamp(min=0)
        found = evidence_of_projection(
            projection, distance, form, self._deviation, basis.shape[1] - len(lasting.rows)
        )
        return found[: len(images)] - found[len(images) :].mean()


def _weights(observation: Observation) -> Tensor:
    """Return the first layer's gradients `(L, H, P)`, without the bias: the 1 of every image bears no noise."""
    return observation.gradients[dense_input(observation.model).weight]


def _intersection(span: Tensor, basis: Tensor) -> Tensor:
    """Return orthonormal rows of what `span (n, P)` and `basis (m, P)` have in common, up to noise; at most n."""
    left, values, _ = torch.linalg.svd(span @ basis.mT, full_matrices=False)
    common: Tensor = left[:, values > _LASTS].mT @ span
    return common


def _squares(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=1)


def _without(basis: Tensor, span: Tensor) -> Tensor:
    """Return orthonormal rows of what is left of `basis (m, P)` when `span (n, P)` is taken off.

    They are fewer than m by as many directions of the span as are in the basis, which need not have all of them.
    """
    left = basis - basis @ span.mT @ span
    values, vectors = torch.linalg.eigh(left @ left.mT)
    kept = values > 1 - _LASTS**2
    rest: Tensor = (vectors[:, kept] / values[kept].sqrt()).mT @ left
    return rest
