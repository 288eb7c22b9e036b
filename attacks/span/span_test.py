"""The span test: is an image one of those that a learner's first-layer gradient is made of? In closed form.

The gradient of a dense first layer is a sum of outer products `a x^T`, one for every image x that the learner used;
with second-order MAML the Hessian puts the support images into the same sum. So a member lies in the gradient's row
space, and an outsider does not: known from federated learning (Zhu and Blaschko 2021, R-GAP) and, with spans, from
DAGER (Petrov et al. 2024). The noise model, the coefficients and the law under noisy images are ours.

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
from metaleak.attacks.span.evidence import evidence_of_direction, evidence_of_units, seen, whitened
from metaleak.attacks.span.noisy_images import noisy_span_evidence
from metaleak.attacks.span.predicted_coefficients import activity, dense_input, query_direction, support_direction
from metaleak.attacks.span.spectrum import RowSpace, row_space_above_noise
from metaleak.attacks.threat_model import Capability
from metaleak.clients.episode import Parameters
from metaleak.clients.models import DenseInput, Model, bias_of, dense_input_of
from metaleak.clients.rules import support_entry
from metaleak.defenses import NO_NOISE, Defense, noise_of

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

    `knows_defenses`: the learners' defenses and the adversary's `own examples` are known; used for the deviation of
    the noise that the defenses tell (see `Modeled`) and, where the images asked about are noisy, for the law of their
    span, see `noisy_span_evidence`.

    The scores are generalized likelihood ratios: maximized over coefficients that are not known, and not calibrated.
    They rank the targets of a gradient; the size of a score is no measure of confidence, and a sum over rounds with
    different noise weighs them only roughly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_any_device: ClassVar[bool] = True

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
        """Return the scores, log generalized likelihood ratios, and as a statistic `outside`: a threshold's baseline.

        The latter is the part, in [0, 1], of a target's squared norm that lies out of the directions above the
        noise. The seed is not used. A target's answer depends on its learner, on the other learners of the round
        and on itself. Raises `ValueError` when the model has no dense first layer, the targets do not fit it, or the
        observation lacks what the attack requires.
        """
        model, first = observation.model, _dense(observation, targets)
        defenses = self._defenses(observation)
        gradients = with_bias_column(observation.gradients, first.weight)
        # The rows of a mean are all the same: there are no others to learn from.
        moments = _second_moments(gradients) if len(gradients) > 1 and observation.mean_of == 1 else None
        noisy = _image_noise(defenses, self.asks)
        scores = torch.zeros(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
        outside = torch.ones_like(scores)
        for row in range(len(gradients)):
            asked = (targets.rows == row).nonzero()[:, 0]
            gradient = gradients[row].double()
            # A learner that sends nothing of this layer has said nothing.
            if len(asked) and bool(gradient.any()):
                known = _shared_noise(
                    defenses, {name: value[row] for name, value in observation.gradients.items()}, observation.mean_of
                )
                space = row_space_above_noise(gradient, known)
                images = _inputs(first, targets.examples[asked], gradient.shape[1])
                outside[asked] = _outside(images, space.basis)
                if noisy:
                    scores[asked] = self._noisy(first, observation, targets.examples[asked], gradient, known, noisy)
                elif self.coefficients == "free":
                    scores[asked] = _free(images, images.square().sum(dim=1), space)
                else:
                    others = None if moments is None else moments - _second_moments(gradients[row : row + 1])
                    some = Targets(targets.examples[asked], targets.rows[asked], targets.positions[asked])
                    scores[asked] = self._predicted(
                        model, observation, some, images, gradient, others, space.deviation
                    )
            if progress is not None:
                progress(row + 1, len(gradients))
        return Answers(scores, statistics={"outside": outside})

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
        parameters = {name: value.double() for name, value in observation.parameters.items()}
        clean = targets.examples.double()
        observed = {name: value[targets.rows[0]].double() for name, value in observation.gradients.items()}
        white = whitened(gradient, others, deviation)
        image = seen(white, images)
        units = evidence_of_units(white, image, activity(model, parameters, clean))
        if self.asks == "support" and support_entry(observation.rule) != "direct":
            direction = support_direction(model, observation.rule, parameters, observed, clean, targets.positions)
            if direction is None:
                return units
            # Either sign: a large inner rate times curvature turns the observed gradient against the query gradient.
            along = evidence_of_direction(white, image, direction).abs()
            noise = deviation * math.sqrt(gradient.numel()) / float(gradient.norm())
            weight = _UNITS_OF_SUPPORT * max(0.0, 1 - noise) ** 2
            return along + weight * units
        direction = query_direction(model, parameters, clean, targets.positions)
        # Two views of one thing: this one is sharper under much noise, the other where adapting turned the direction.
        return units + evidence_of_direction(white, image, direction)

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
        return noisy_span_evidence(first.inputs(images.double()), basis, own.mT @ own / len(own), deviation)


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


def with_bias_column(gradients: Parameters, first: str) -> Tensor:
    """Return the first layer's gradients `(L, H, P)`, with the bias's as one more column where there is a bias.

    The bias's gradient is the sum of the coefficients: it is to an input of 1, which every image has, what the
    weight's is to a pixel.
    """
    bias = gradients.get(bias_of(first))
    return gradients[first] if bias is None else torch.cat([gradients[first], bias[:, :, None]], dim=2)


def _dense(observation: Observation, targets: Targets) -> DenseInput:
    dense = dense_input(observation.model)
    first = dense.weight
    width = observation.parameters[first].shape[1]
    if len(targets.examples) and targets.examples[0].numel() != width:
        raise ValueError(f"target images have {targets.examples[0].numel()} values, {first!r} takes {width}")
    learners = len(observation.gradients[first])
    if len(targets.rows) and not 0 <= int(targets.rows.min()) <= int(targets.rows.max()) < learners:
        raise ValueError(f"targets.rows holds values outside [0, {learners})")
    return dense


def _inputs(first: DenseInput, images: Tensor, width: int) -> Tensor:
    """Return images as the layer's inputs `(T, width)`, with the bias's 1 where the width has room for it."""
    flat = first.inputs(images.double())
    return flat if flat.shape[1] == width else torch.cat([flat, flat.new_ones((len(flat), 1))], dim=1)


def _second_moments(gradients: Tensor) -> Tensor:
    """Return the second moment `(P, P)` of all learners' rows, summed with each learner counting alike."""
    moments = gradients.new_zeros((gradients.shape[2],) * 2, dtype=torch.float64)
    for one in gradients:
        rows = one.double()
        moments += rows.mT @ rows / rows.square().sum().clamp(min=1e-300)
    return moments


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


def _image_noise(defenses: tuple[Defense, ...], asks: Literal["query", "support"]) -> float:
    """Return the standard deviation of the noise on the images asked about, as far as it is told in pixel values."""
    noises = [noise_of(one) for one in defenses if one.place == asks]
    return math.hypot(*(noise.deviation for noise in noises if noise is not None and not noise.relative))


def _shared_noise(defenses: tuple[Defense, ...], gradient: Parameters, learners: int) -> float | None:
    """Return the deviation of the noise on the mean of `learners` gradients, `None` where it is not told."""
    shared = [one for one in defenses if one.place == "shared"]
    if len(shared) != 1:
        return None
    noise = noise_of(shared[0])
    if noise == NO_NOISE or noise is None:
        return None
    if not noise.relative:
        return noise.deviation / math.sqrt(learners)
    if learners > 1:
        # Relative noise goes by each gradient's size, which a mean does not tell.
        return None
    # The scale is in units of the gradient before the noise, which added its own part of the energy.
    energy = sum(float(value.double().square().sum()) for value in gradient.values())
    entries = sum(value.numel() for value in gradient.values())
    return float(noise.deviation * (energy / entries / (1 + noise.deviation**2)) ** 0.5)
