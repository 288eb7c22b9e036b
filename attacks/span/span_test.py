"""The span test: membership in closed form, by whether an image lies in the row space of a first-layer gradient.

The gradient of a dense first layer is a sum of outer products `a x^T`, one for every image x that the learner used;
under second-order MAML the Hessian adds such terms for the support images. So members lie in the gradient's row
space, and other images do not, as is known from federated learning (Zhu and Blaschko 2021, R-GAP) and used for span
checks in DAGER (Petrov et al. 2024). The noise model, the coefficients and the distribution under noisy images are
new here.

Where it must fail:

- A model without a dense first layer (see `DenseInput`). The gradient of a convolution has one row per filter, each a
  sum over the hundreds of patches of every image: there are far fewer rows than patches, and the patches of one image
  span the whole space of patches. The gradient of the classifier has one row per class, fewer than images, and its
  inputs depend on the adapted parameters. The test does not apply to such models.
- Fewer units in the layer than images: the rows then span less than the images do, and no image lies in their space.
  Support images are lost first, as their part of the gradient is some thirty times weaker. What remains is the match
  of the coefficients, which `predicted` still uses.
- Support images under rules without a second derivative (first-order MAML): they are not in the sum. Under a
  head-only rule (ANIL) they are, since their effect on the head depends on the first layer.

Noise on the *inner* gradient is no defense: the gradient is still a sum over the images themselves.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from metaleak.attacks.attack import Answers, Progress, Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Round, Rounds
from metaleak.attacks.span.evidence import whitened
from metaleak.attacks.span.first_layer import (
    image_noise,
    layer_inputs,
    second_moments,
    shared_noise,
    with_bias_column,
)
from metaleak.attacks.span.image_noise_over_rounds import clean_images_over_rounds, noisy_images_over_rounds
from metaleak.attacks.span.noisy_images import noisy_precision, noisy_span_evidence
from metaleak.attacks.span.predicted_coefficients import dense_input
from metaleak.attacks.span.predicted_evidence import evidence_features, predicted_evidence
from metaleak.attacks.span.spectrum import RowSpace, part_outside, row_space_above_noise
from metaleak.attacks.span.weighted_evidence import weighted_evidence, weighted_over_rounds
from metaleak.attacks.threat_model import Capability
from metaleak.clients.models import DenseInput, Model, dense_input_of
from metaleak.defenses import Defense

_BLOCK = 1024

_UNITS_OF_SUPPORT = 0.2
"""The weight of the evidence from units, beside that from the predicted direction of a support image, without noise.

Chosen by experiment. The direction alone fails where the inner step overshoots (784-256-5 on Fashion-MNIST at the
rate 0.4); the evidence from units does not distinguish the two sets, and adds noise where the gradient has much.
"""


class SpanTest(BaseModel):
    """Membership inference by the span of the first layer's gradient, for models whose first layer is dense.

    `asks`: the attacked set. `coefficients`: `predicted` also uses what the sent parameters reveal about a member's
    coefficients, which finds members under noise and distinguishes query from support images. `free` uses only the
    span, see `span_scores`: it does not distinguish the two sets, and ignores the other learners of the round.

    `knows_defenses`: the adversary knows the learners' defenses and has `own examples`. Then weights of the evidence
    are learned from shadow learners with the same defenses, and the scores are log-likelihood ratios. If the attacked
    set's images are noisy, the likelihood of their span is part of the evidence, see `noisy_span_evidence`.

    Otherwise scores are generalized likelihood ratios, maximized over unknown coefficients. They rank the targets of
    one gradient, but are not calibrated: their size does not measure confidence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_any_device: ClassVar[bool] = True
    takes_parts: ClassVar[bool] = True

    asks: Literal["query", "support"] = "query"
    coefficients: Literal["predicted", "free"] = "predicted"
    knows_defenses: bool = False

    @property
    def requires(self) -> frozenset[Capability]:
        """`defenses` and `own examples` with `knows_defenses`, otherwise no capability."""
        return frozenset({"defenses", "own examples"} if self.knows_defenses else ())

    def applies_to(self, model: Model) -> bool:
        """Return whether the model's first layer is dense."""
        return dense_input_of(model) is not None

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return the scores; with `knows_defenses` they are weighted by shadow learners, which depend on `seed`.

        See `evidence` for unweighted scores and for the statistic. Raises `ValueError` if the model has no dense
        first layer, the targets do not fit it, or the observation lacks what the attack requires.
        """
        if not self.knows_defenses:
            return self.evidence(observation, targets, progress)
        statistics = self.evidence(observation, targets, progress).statistics
        return Answers(
            weighted_evidence(observation, targets, self.asks, self._features, seed), statistics=statistics
        )

    def evidence(self, observation: Observation, targets: Targets, progress: Progress | None = None) -> Answers:
        """Return the unweighted scores, and the statistic `outside`, a baseline for simple thresholding.

        `outside` is the fraction, in [0, 1], of a target's squared norm outside of the gradient's directions above
        the noise. A target's score depends on the target, its learner and the other learners of the round. Raises
        `ValueError` as the attack does.
        """
        model, first = observation.model, _dense(observation, targets)
        defenses = self._defenses(observation)
        sent, learners = observation.gradients, len(observation.gradients[first.weight])
        # All rows of a mean are the same, so there are no other learners to estimate moments from.
        several = learners > 1 and observation.mean_of == 1
        moments = second_moments(sent, first.weight, range(learners)) if several else None
        noisy = image_noise(defenses, self.asks)
        scores = torch.zeros(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
        outside = torch.ones_like(scores)
        for row in range(learners):
            asked = targets.places_of(row)
            gradient = with_bias_column(sent, first.weight, slice(row, row + 1))[0].double()
            # A gradient of zeros gives no evidence.
            if len(asked) and bool(gradient.any()):
                own = {name: value[row] for name, value in sent.items()}
                known = shared_noise(defenses, own, observation.mean_of)
                space = row_space_above_noise(gradient, known)
                images = layer_inputs(first, targets.examples[asked], gradient.shape[1])
                outside[asked] = part_outside(images, space.basis)
                if noisy:
                    scores[asked] = self._noisy(first, observation, targets.examples[asked], gradient, known, noisy)
                elif self.coefficients == "free":
                    scores[asked] = _free(images, images.square().sum(dim=1), space)
                else:
                    others = moments
                    if moments is not None:
                        others = moments - second_moments(sent, first.weight, range(row, row + 1))
                    scores[asked] = self._predicted(
                        model, observation, targets.at(asked), images, gradient, others, space.deviation
                    )
            if progress is not None:
                progress(row + 1, learners)
        return Answers(scores, statistics={"outside": outside})

    def reason_against_rounds(self) -> str | None:
        """Return why the test uses one round only if it does not know the defenses: weights cannot be learned."""
        return None if self.knows_defenses else "knows_defenses must be true to combine several rounds"

    def over_rounds(self, rounds: Rounds, targets: Targets, seed: int, progress: Progress | None = None) -> Answers:
        """Return log-likelihood ratios from all rounds.

        If images are noisy, learners keep their sets, of fewer images than the layer has units, and are seen
        individually, they come from the intersection of a learner's row spaces and the rest of each
        (`image_noise_over_rounds`). Otherwise they come from the evidence in each round, computed with that round's
        parameters and weighted by shadow learners. Raises `ValueError` without `knows_defenses`.
        """
        if reason := self.reason_against_rounds():
            raise ValueError(reason)
        noisy, around = self._noise_on_fixed_sets(rounds[0])
        if noisy:
            return Answers(noisy_images_over_rounds(rounds, targets, self.asks, noisy, progress))
        if around:
            return Answers(clean_images_over_rounds(rounds, targets, progress))
        return Answers(weighted_over_rounds(rounds, targets, self.asks, self._features, seed, progress))

    def _noise_on_fixed_sets(self, round: Round) -> tuple[float, float]:
        """Return the standard deviations of image noise in the attacked and in the other set, if both sets are fixed.

        Both are 0 if learners draw new episodes or are seen in a mean, or hold more images than the layer has units:
        then row spaces have no intersection to use.
        """
        observation = round.observation
        units = len(observation.parameters[dense_input(observation.model).weight])
        held = observation.ways * (observation.shots + observation.queries)
        if not round.fixed_sets or observation.mean_of > 1 or units < held:
            return 0.0, 0.0
        defenses = self._defenses(observation)
        query, support = image_noise(defenses, "query"), image_noise(defenses, "support")
        return (query, support) if self.asks == "query" else (support, query)

    def _features(self, observation: Observation, targets: Targets, real: int) -> Tensor:
        """Return the evidence for each target as features `(T, F)`; the first `real` rows are learners."""
        _dense(observation, targets)
        defenses = self._defenses(observation)
        if not image_noise(defenses, self.asks):
            return evidence_features(observation, self.asks, targets, real, defenses)
        likelihood = self.evidence(observation, targets).scores[:, None]
        if observation.episodes > 1:
            # A message of several episodes contains most of a shard, and the predicted evidence for images of the
            # other set has the opposite sign: with it the AUC fell from 0.64 to 0.37.
            return likelihood
        return torch.cat([evidence_features(observation, self.asks, targets, real, defenses), likelihood], dim=1)

    def _defenses(self, observation: Observation) -> tuple[Defense, ...]:
        if not self.knows_defenses:
            return ()
        if observation.defenses is None:
            raise ValueError("knows_defenses needs the observation's defenses, which are None")
        return observation.defenses

    def _predicted(
        self,
        model: Model,
        observation: Observation,
        targets: Targets,
        images: Tensor,
        gradient: Tensor,
        others: Tensor | None,
        deviation: float,
    ) -> Tensor:
        found = predicted_evidence(observation, self.asks, targets, images, whitened(gradient, others, deviation))
        if found.along is None:
            return found.units
        if found.from_support:
            # Both signs: with a large inner rate times curvature the observed gradient opposes the query gradient.
            noise = deviation * math.sqrt(gradient.numel()) / float(gradient.norm())
            weight = _UNITS_OF_SUPPORT * max(0.0, 1 - noise) ** 2
            return found.along.abs() + weight * found.units
        # Both are evidence for the same: `along` is better under much noise, `units` if adapting changed directions.
        return found.units + found.along

    def _noisy(
        self,
        first: DenseInput,
        observation: Observation,
        images: Tensor,
        gradient: Tensor,
        known: float | None,
        deviation: float,
    ) -> Tensor:
        if observation.own_examples is None:
            raise ValueError("knows_defenses needs the observation's own_examples, which are None")
        own = first.inputs(observation.own_examples.double())
        # Without the bias, whose input of 1 has no noise.
        width = own.shape[1]
        basis = row_space_above_noise(gradient[:, :width], known).basis
        per_way = observation.queries + (observation.shots if self.asks == "support" else 0)
        # The query images dominate the largest directions.
        basis = basis[: observation.ways * per_way]
        if first.affine is not None:
            # Noise is scaled like the pixels; one factor stands for those of all channels, which are similar.
            deviation *= float(first.affine.gain.double().square().mean().sqrt())
        precision = noisy_precision(own.mT @ own / len(own), deviation)
        return noisy_span_evidence(first.inputs(images.double()), basis, precision, deviation)


def span_scores(gradient: Tensor, images: Tensor) -> Tensor:
    """Return how well each of T images fits into the row space of each of L gradients, `(L, T)`, higher for members.

    `gradient (L, H, P)` are first-layer gradients and `images (T, P)` inputs of the layer; every image is scored for
    every learner. The score is the natural logarithm of a generalized likelihood ratio, float64: the residual that
    noise would leave of a member, divided by the image's residual,

        score = log(deviation^2 sum_i (v_i.x)^2 / s_i^2) - log(|x - sum_i (v_i.x) v_i|^2 / (P - k)),

    with sums over the k singular pairs (s, v) above the noise. To first order this is the loss of likelihood when the
    gradient's row space is rotated until it contains x.
    """
    spaces = [row_space_above_noise(one) for one in gradient]
    scores = torch.empty(len(gradient), len(images), dtype=torch.float64)
    # A small block of targets stays in the processor's cache for all learners.
    for start in range(0, len(images), _BLOCK):
        wide = images[start : start + _BLOCK].double()
        squares = wide.square().sum(dim=1)
        for row, space in enumerate(spaces):
            scores[row, start : start + _BLOCK] = _free(wide, squares, space)
    return scores


def _dense(observation: Observation, targets: Targets) -> DenseInput:
    dense = dense_input(observation.model)
    first = dense.weight
    if first not in observation.gradients:
        raise ValueError(f"the span test needs the gradient of {first!r}, which the learners do not share (shares)")
    width = observation.parameters[first].shape[1]
    if len(targets.examples) and targets.examples[0].numel() != width:
        raise ValueError(
            f"targets.examples: must have {width} values, as {first!r} takes, got {targets.examples[0].numel()}"
        )
    learners = len(observation.gradients[first])
    if len(targets.rows) and not 0 <= int(targets.rows.min()) <= int(targets.rows.max()) < learners:
        raise ValueError(f"targets.rows: must be in [0, {learners}), the learners of the observation")
    return dense


def _free(images: Tensor, squares: Tensor, space: RowSpace) -> Tensor:
    inside = (images @ space.basis.mT).square_()
    # No residual is smaller than the image's own rounding.
    residual = torch.maximum(squares - inside.sum(dim=1), 1e-15 * squares)
    residual /= max(1, space.basis.shape[1] - len(space.basis))
    allowed = inside @ space.values.clamp(min=1e-150).square().reciprocal() * space.deviation**2
    return allowed.clamp(min=1e-300).log() - residual.clamp(min=1e-300).log()
