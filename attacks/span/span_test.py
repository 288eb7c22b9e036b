"""The span test: is an image one of those that a learner's first-layer gradient is made of? In closed form.

The gradient of a dense first layer is a sum of outer products `a x^T`, one for every image x that the learner used;
with second-order MAML the Hessian puts the support images into the same sum. So a member lies in the gradient's row
space, and an outsider does not: known from federated learning (Zhu and Blaschko 2021, R-GAP) and, with spans, from
DAGER (Petrov et al. 2024). The noise model, the coefficients and the distribution under noisy images are ours.

Where it must fail, whatever is computed:

- A model without a dense first layer (see `DenseInput`). A convolution's gradient has one row a filter, and each is
  a sum of the hundreds of patches of every image: far fewer rows than patches, and the patches of one image span all
  that a patch can be. The classifier's gradient has a row a way, fewer than images, and its inputs depend on the
  adapted parameters. The test does not apply to such models.
- Fewer units in the layer than images: the rows then span less than the images do, and no image lies in their space.
  The support set is lost first, its part of the gradient being some thirty times weaker. What is left is the match of
  the coefficients, which `predicted` still sees.
- Support images of rules without a second derivative (first-order MAML): they are not in the sum. Of a head-only rule
  (ANIL) they are, for what they do to the head depends on the first layer.

Noise in the *inner* gradient is no defense: the sum stays one over the images themselves.
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
from metaleak.attacks.span.lasting_span import clean_images_over_rounds, noisy_images_over_rounds
from metaleak.attacks.span.noisy_images import noisy_precision, noisy_span_evidence
from metaleak.attacks.span.predicted_coefficients import dense_input
from metaleak.attacks.span.predicted_evidence import evidence_features, predicted_evidence
from metaleak.attacks.span.spectrum import RowSpace, row_space_above_noise
from metaleak.attacks.span.weighed_evidence import weighed_evidence, weighed_over_rounds
from metaleak.attacks.threat_model import Capability
from metaleak.clients.models import DenseInput, Model, dense_input_of
from metaleak.defenses import Defense

_BLOCK = 1024

_UNITS_OF_SUPPORT = 0.2
"""How much the free evidence counts beside the predicted direction of a support image, without noise.

Chosen by experiment. The direction alone fails where adapting overshoots (784-256-5 on Fashion-MNIST at the rate
0.4); the free evidence is blind to the set, and blurs all under much noise.
"""


class SpanTest(BaseModel):
    """Was this image in the learner's set that the attack `asks` about? For models whose first layer is dense.

    `coefficients`: `predicted` weighs the span by what the sent parameters tell of a member's coefficients, which
    is what finds members under noise and tells query from support. `free` uses the span alone, `span_scores`: it has
    no idea which of the two sets a member is in, and no use for the other learners of the round.

    `knows_defenses`: the learners' defenses and the adversary's `own examples` are known. Then the evidence is
    weighed as shadow learners tell that are defended alike, and the scores are log-likelihood ratios. Where the
    images asked about are noisy, the likelihood of their span is a part of the evidence, see `noisy_span_evidence`.

    Other scores are generalized likelihood ratios: maximized over coefficients that are not known, and not
    calibrated. They rank the targets of a gradient; the size of a score is no measure of confidence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_any_device: ClassVar[bool] = True
    takes_parts: ClassVar[bool] = True

    asks: Literal["query", "support"] = "query"
    coefficients: Literal["predicted", "free"] = "predicted"
    knows_defenses: bool = False

    @property
    def requires(self) -> frozenset[Capability]:
        """Nothing, unless it `knows_defenses`."""
        return frozenset({"defenses", "own examples"} if self.knows_defenses else ())

    def applies_to(self, model: Model) -> bool:
        """Return whether the model's first layer is dense."""
        return dense_input_of(model) is not None

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return the scores, weighed by shadow learners that the seed makes where the defenses are known.

        See `evidence` for scores that are not weighed, and for the statistic. Raises `ValueError` when the model has
        no dense first layer, the targets do not fit it, or the observation lacks what the attack requires.
        """
        if not self.knows_defenses:
            return self.evidence(observation, targets, progress)
        statistics = self.evidence(observation, targets, progress).statistics
        return Answers(weighed_evidence(observation, targets, self.asks, self._features, seed), statistics=statistics)

    def evidence(self, observation: Observation, targets: Targets, progress: Progress | None = None) -> Answers:
        """Return the scores that are not weighed, and as a statistic `outside`: a threshold's baseline.

        The latter is the part, in [0, 1], of a target's squared norm that lies out of the directions above the
        noise. A target's answer depends on its learner, on the other learners of the round and on itself. Raises
        `ValueError` as the attack does.
        """
        model, first = observation.model, _dense(observation, targets)
        defenses = self._defenses(observation)
        sent, learners = observation.gradients, len(observation.gradients[first.weight])
        # The rows of a mean are all the same: there are no others to learn from.
        several = learners > 1 and observation.mean_of == 1
        moments = second_moments(sent, first.weight, range(learners)) if several else None
        noisy = image_noise(defenses, self.asks)
        scores = torch.zeros(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
        outside = torch.ones_like(scores)
        for row in range(learners):
            asked = targets.places_of(row)
            gradient = with_bias_column(sent, first.weight, slice(row, row + 1))[0].double()
            # A gradient of zero is no evidence.
            if len(asked) and bool(gradient.any()):
                own = {name: value[row] for name, value in sent.items()}
                known = shared_noise(defenses, own, observation.mean_of)
                space = row_space_above_noise(gradient, known)
                images = layer_inputs(first, targets.examples[asked], gradient.shape[1])
                outside[asked] = _outside(images, space.basis)
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
        """Return why a test that does not know the defenses sees one round: its scores cannot be weighed."""
        return None if self.knows_defenses else "knows_defenses must be true for rounds to be weighed"

    def over_rounds(self, rounds: Rounds, targets: Targets, seed: int, progress: Progress | None = None) -> Answers:
        """Return log-likelihood ratios from all rounds.

        Where images are noisy by what lasts of a learner's row spaces and what does not (`lasting_span`), else, and
        where learners draw new episodes or are seen in a mean, by the evidence in each round, which is computed with
        the parameters sent in it and weighed as shadow learners tell. Raises `ValueError` without known defenses.
        """
        if reason := self.reason_against_rounds():
            raise ValueError(reason)
        noisy, around = self._noise_that_turns(rounds[0])
        if noisy:
            return Answers(noisy_images_over_rounds(rounds, targets, self.asks, noisy, progress))
        if around:
            return Answers(clean_images_over_rounds(rounds, targets, progress))
        return Answers(weighed_over_rounds(rounds, targets, self.asks, self._features, seed, progress))

    def _noise_that_turns(self, round: Round) -> tuple[float, float]:
        """Return the deviations of the noise on the images asked about and on the others, of learners with one set.

        They are 0 where learners draw new episodes or are seen in a mean: then no set's span lasts.
        """
        if not round.sets_last or round.observation.mean_of > 1:
            return 0.0, 0.0
        defenses = self._defenses(round.observation)
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
            # A message of several episodes holds most of a shard, and the predicted evidence of what is in the other
            # set points the other way: with it the AUC fell from 0.64 to 0.37.
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
            # Either sign: a large inner rate times curvature turns the observed gradient against the query gradient.
            noise = deviation * math.sqrt(gradient.numel()) / float(gradient.norm())
            weight = _UNITS_OF_SUPPORT * max(0.0, 1 - noise) ** 2
            return found.along.abs() + weight * found.units
        # Two views of one thing: this one is sharper under much noise, the other where adapting turned the direction.
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
        # Without the bias: the one that it appends to every image bears no noise.
        width = own.shape[1]
        basis = row_space_above_noise(gradient[:, :width], known).basis
        per_way = observation.queries + (observation.shots if self.asks == "support" else 0)
        # The query images make the largest directions.
        basis = basis[: observation.ways * per_way]
        if first.affine is not None:
            # Scaled with the pixels; by one number, where channels are scaled by several of much the same size.
            deviation *= float(first.affine.gain.double().square().mean().sqrt())
        precision = noisy_precision(own.mT @ own / len(own), deviation)
        return noisy_span_evidence(first.inputs(images.double()), basis, precision, deviation)


def span_scores(gradient: Tensor, images: Tensor) -> Tensor:
    """Return how well each of T images fits into the row space of each of L gradients, `(L, T)`, higher for members.

    `gradient (L, H, P)` are first-layer gradients and `images (T, P)` the layer's inputs: every image is asked of
    every learner, by one product a learner. Natural logarithms of a generalized likelihood ratio, float64: the
    residual that the noise lets a member have, over that which the image has,

        score = log(deviation^2 sum_i (v_i.x)^2 / s_i^2) - log(|x - sum_i (v_i.x) v_i|^2 / (P - k)),

    over the k singular pairs (s, v) above the noise: to first order, what it costs the likelihood of the gradient to
    turn its row space until it contains x.
    """
    spaces = [row_space_above_noise(one) for one in gradient]
    scores = torch.empty(len(gradient), len(images), dtype=torch.float64)
    # Few targets at a time stay in the processor's cache for all learners.
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
        raise ValueError(f"shares: the attack needs the gradient of {first!r}, which the learners do not share")
    width = observation.parameters[first].shape[1]
    if len(targets.examples) and targets.examples[0].numel() != width:
        raise ValueError(f"target images have {targets.examples[0].numel()} values, {first!r} takes {width}")
    learners = len(observation.gradients[first])
    if len(targets.rows) and not 0 <= int(targets.rows.min()) <= int(targets.rows.max()) < learners:
        raise ValueError(f"targets.rows holds values outside [0, {learners})")
    return dense


def _outside(images: Tensor, basis: Tensor) -> Tensor:
    rest = images - images @ basis.mT @ basis
    return rest.square().sum(dim=1) / images.square().sum(dim=1).clamp(min=1e-300)


def _free(images: Tensor, squares: Tensor, space: RowSpace) -> Tensor:
    inside = (images @ space.basis.mT).square_()
    # No image is nearer than its own rounding.
    residual = torch.maximum(squares - inside.sum(dim=1), 1e-15 * squares)
    residual /= max(1, space.basis.shape[1] - len(space.basis))
    allowed = inside @ space.values.clamp(min=1e-150).square().reciprocal() * space.deviation**2
    return allowed.clamp(min=1e-300).log() - residual.clamp(min=1e-300).log()
