"""The evidence for targets in one learner's gradient, based on the coefficients that the sent parameters predict."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.at_once import for_each
from metaleak.attacks.attack import Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.span.evidence import (
    WhitenedGradient,
    evidence_of_direction,
    evidence_of_units,
    prior_root,
    seen,
    whitened_by,
)
from metaleak.attacks.span.first_layer import layer_inputs, second_moments, shared_noise, with_bias_column
from metaleak.attacks.span.predicted_coefficients import activity, dense_input, query_direction, support_direction
from metaleak.attacks.span.spectrum import row_space_above_noise
from metaleak.clients.rules import support_entry
from metaleak.defenses import Defense

_OTHERS = 16
"""The number of other learners whose gradients give an image's null distribution."""

_FEWEST = 4
"""The smallest number of other learners for a null distribution."""


@dataclass(frozen=True)
class PredictedEvidence:
    """Log-likelihood ratios of t targets, from their active units `units (t,)` and from directions `along (t,)`.

    `direction (t, H)` are the predicted coefficients; `direction` and `along` are `None` if none are predicted.
    `from_support`: whether they are those of support images. `sharpened (t, P)` are the images times Lambda^-1.
    """

    units: Tensor
    along: Tensor | None
    direction: Tensor | None
    from_support: bool
    sharpened: Tensor


def predicted_evidence(
    observation: Observation,
    asks: Literal["query", "support"],
    targets: Targets,
    images: Tensor,
    white: WhitenedGradient,
) -> PredictedEvidence:
    """Return the evidence for `targets`, all of one learner, in its whitened first-layer gradient.

    `images (t, P)` are the targets as the layer's inputs.
    """
    parameters = {name: value.double() for name, value in observation.parameters.items()}
    clean = targets.examples.double()
    image = seen(white, images)
    units = evidence_of_units(white, image, activity(observation.model, parameters, clean))
    from_support = asks == "support" and support_entry(observation.rule) != "direct"
    if from_support:
        observed = {name: value[targets.rows[0]].double() for name, value in observation.gradients.items()}
        direction = support_direction(
            observation.model, observation.rule, parameters, observed, clean, targets.positions
        )
    else:
        direction = query_direction(observation.model, parameters, clean, targets.positions)
    along = None if direction is None else evidence_of_direction(white, image, direction)
    sharpened = torch.linalg.solve_triangular(white.root.mT, image.white.mT, upper=True).mT
    return PredictedEvidence(units, along, direction, from_support, sharpened)


def evidence_features(
    observation: Observation,
    asks: Literal["query", "support"],
    targets: Targets,
    real: int,
    defenses: tuple[Defense, ...],
) -> Tensor:
    """Return each target's evidence from units and from the direction, and its rank among learners, `(T, F)`.

    The last feature compares the direction's match in the learner's gradient with the matches of the same image in up
    to 16 other learners' gradients, as a z-score: each image has its own null distribution, as in FedMIA (Zhu et al.
    2025). The first `real` rows of the observation are learners, the others shadow learners. Features without
    variance are dropped.
    """
    first = dense_input(observation.model)
    learners = len(observation.gradients[first.weight])

    def of_learner(row: int) -> Tensor:
        return with_bias_column(observation.gradients, first.weight, slice(row, row + 1))[0]

    single = observation.mean_of == 1
    # The prior is that of all learners: leaving one out changes little, and one root serves all rows.
    moments = second_moments(observation.gradients, first.weight, range(real)) if real > 1 and single else None
    root = prior_root(of_learner(0).double(), moments, 1.0)
    found = torch.zeros(len(targets.rows), 3, dtype=torch.float64, device=targets.rows.device)

    def look(row: int) -> None:
        asked = targets.places_of(row)
        gradient = of_learner(row)
        if not len(asked) or not bool(gradient.any()):
            return
        seen = {name: value[row] for name, value in observation.gradients.items()}
        deviation = shared_noise(defenses, seen, observation.mean_of) or row_space_above_noise(gradient).deviation
        images = layer_inputs(first, targets.examples[asked], gradient.shape[1])
        white = whitened_by(root, gradient.double() / deviation)
        one = predicted_evidence(observation, asks, targets.at(asked), images, white)
        found[asked, 0] = one.units
        if one.along is not None and one.direction is not None:
            found[asked, 1] = one.along
            others = [place for place in range(real) if place != row]
            if single and len(others) >= _FEWEST:
                some = others[:: -(-len(others) // _OTHERS)]
                found[asked, 2] = _among_others(one, gradient, [of_learner(place) for place in some])

    for_each(range(learners), look)
    return found[:, found.std(dim=0) > 0]


def _among_others(one: PredictedEvidence, gradient: Tensor, others: list[Tensor]) -> Tensor:
    """Return the z-scores `(t,)` of matches in `gradient (H, P)` relative to those in the K `others (H, P)`."""
    assert one.direction is not None
    sharpened, direction = one.sharpened.float(), one.direction.float()
    matches = torch.stack([((sharpened @ each.mT) * direction).sum(dim=1) for each in (gradient, *others)]).double()
    spread = matches[1:].std(dim=0)
    return (matches[0] - matches[1:].mean(dim=0)) / spread.clamp(min=1e-300)
