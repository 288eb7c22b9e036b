"""The Cocktail Party Attack: images from a mean over many, by independent component analysis.

The gradient of a dense first layer is a sum of outer products `a x^T`, one for every image x that entered it. The
rows of a mean over learners, as seen under secure aggregation, are therefore mixtures of the images of all learners.
Kariyappa et al. (ICML 2023) separate them by independent component analysis, the method for separating voices at a
cocktail party. Second-order meta-gradients mix support and query images; the separation does not reveal to which set
or learner an image belongs.

New here is the use of the bias. Its gradient is the sum of the coefficients `a`, so that for every combination of
rows the factor on the image is known. That determines a source's size and sign, which separation leaves open, and a
source that leaves the range of images can be rejected.

The attack fails if there are more images than units or pixels, since then no combination of rows is a single image.
It fails somewhat earlier, since n images have n^2 coefficients, to be learned from n values per pixel.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.attacks.attack import Answers, Progress, Reconstructions, Targets
from metaleak.attacks.cocktail.unmixing import Mixture, Priors, found, images, mixture, out_of_range, unmix
from metaleak.attacks.observation import Observation
from metaleak.attacks.seeding import generator_for
from metaleak.attacks.span.first_layer import with_bias_column
from metaleak.attacks.span.spectrum import row_space_above_noise
from metaleak.attacks.threat_model import Capability
from metaleak.clients.models import DenseInput, Model, bias_of, dense_input_of
from metaleak.clients.rules import support_entry

_REPEATED = 0.5
"""The factor on the confidence in a source that another row has found, too."""


class CocktailParty(BaseModel):
    """Reconstruction of the inputs of a dense first layer, from one gradient or from the mean of many.

    `smooth`, `apart` and `range` are the weights, relative to negentropy, of total variation, of the similarity of
    unmixing rows and of leaving the range [0, 1]; the last has an effect only if the layer has a bias. All rows take
    `iterations` steps of gradient descent. Rows that found no source of their own are drawn anew and all descend
    again, up to `restarts` times.

    For membership, a target's score is its absolute correlation over pixels with the most similar source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: Literal["query", "support"] = "query"
    smooth: Annotated[float, Field(ge=0, le=1000)] = 3.0
    apart: Annotated[float, Field(ge=0, le=1000)] = 0.1
    range: Annotated[float, Field(ge=0, le=1000)] = 10.0
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    restarts: Annotated[int, Field(ge=0, le=1000)] = 3

    @property
    def requires(self) -> frozenset[Capability]:
        """No capability: the messages that the server sees suffice."""
        return frozenset()

    def applies_to(self, model: Model) -> bool:
        """Return whether the model's first layer is dense."""
        return dense_input_of(model) is not None

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return all images found in each learner's gradient, of both sets, `(L, n, C, H, W)`.

        n is the number of images in the gradient.


        The confidence, in [0, 1], is the fraction of a source's energy inside the range of images (1 for a layer
        without a bias, where it is unknown), and half of that for a duplicate. Where there is no source, the image is
        medium gray with confidence 0, as for a learner whose gradient is 0 or not finite. Raises `ValueError` for a
        model without a dense first layer and for examples that are not images.
        """
        first, most = _first_layer(observation, observation.input_shape), _most(observation)
        made = torch.full((_learners(observation, first), most, *observation.input_shape), 0.5)
        confidence = torch.zeros(made.shape[:2])
        for row, mixed, rows in self._unmixed(observation, first, observation.input_shape, seed, progress):
            made[row, : len(rows)] = images(rows, mixed).reshape(-1, *observation.input_shape).float()
            certainty = torch.full((len(rows),), _REPEATED, dtype=torch.float64)
            certainty[found(rows, mixed)] = 1.0
            if mixed.sizes is not None:
                certainty = certainty * (1 - out_of_range(rows, mixed))
            confidence[row, : len(rows)] = certainty.float()
        return Reconstructions(made, confidence)

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return each target's absolute correlation with the most similar source, `(T,)`, and that source.

        For a learner whose gradient is 0 or not finite they are 0 and medium gray. Raises `ValueError` for a model
        without a dense first layer and for targets that do not fit it.
        """
        shape = tuple(targets.examples.shape[1:])
        first = _first_layer(observation, shape)
        scores = torch.zeros(len(targets.rows), dtype=torch.float64)
        made = torch.full_like(targets.examples, 0.5)
        for row, mixed, rows in self._unmixed(observation, first, shape, seed, progress):
            asked = targets.places_of(row)
            likeness = correlations(targets.examples[asked].flatten(1).double(), rows @ mixed.white)
            scores[asked], best = likeness.max(dim=1)
            made[asked] = images(rows[best], mixed).reshape(-1, *shape).to(made)
        return Answers(scores, made)

    def _unmixed(
        self,
        observation: Observation,
        first: DenseInput,
        shape: tuple[int, ...],
        seed: int,
        progress: Progress | None,
    ) -> list[tuple[int, Mixture, Tensor]]:
        """Return each learner's row, mixture and unmixing rows; those of a mean are computed once."""
        priors = Priors(self.smooth, self.apart, self.range)
        gradients = with_bias_column(observation.gradients, first.weight)
        unmixed: list[tuple[int, Mixture, Tensor]] = []
        for row, gradient in enumerate(gradients):
            if observation.mean_of > 1 and unmixed:
                unmixed.append((row, *unmixed[0][1:]))
            # A gradient that is zero or not finite has no sources.
            elif bool(gradient.any()) and bool(gradient.isfinite().all()):
                mixed = mixture(_span(gradient, first, _most(observation)), shape, _sized(observation, first))
                generator, single = generator_for(seed, "unmixing", row), mixed.in_type(torch.float32)
                rows = unmix(single, priors, self.iterations, self.restarts, generator).double()
                unmixed.append((row, mixed, rows))
            if progress is not None:
                progress(row + 1, len(gradients))
        return unmixed


def correlations(targets: Tensor, sources: Tensor) -> Tensor:
    """Return the absolute correlations over P pixels of `targets (T, P)` and `sources (N, P)`, `(T, N)` in [0, 1]."""
    units = [part - part.mean(dim=1, keepdim=True) for part in (targets, sources)]
    units = [part / part.norm(dim=1, keepdim=True).clamp(min=1e-30) for part in units]
    return (units[0] @ units[1].mT).abs()


def _first_layer(observation: Observation, shape: tuple[int, ...]) -> DenseInput:
    first = dense_input_of(observation.model)
    if first is None:
        raise ValueError(f"cocktail-party: the first layer of {type(observation.model).__name__} is not dense")
    width = observation.parameters[first.weight].shape[1]
    if len(shape) != 3 or math.prod(shape) != width:
        raise ValueError(f"cocktail-party: examples must have the shape (C, H, W) with {width} values, got {shape}")
    return first


def _learners(observation: Observation, first: DenseInput) -> int:
    return len(observation.gradients[first.weight])


def _sized(observation: Observation, first: DenseInput) -> bool:
    return bias_of(first.weight) in observation.gradients


def _most(observation: Observation) -> int:
    """Return the number of images in the gradient, of all learners in the mean."""
    held = observation.queries + (observation.shots if support_entry(observation.rule) != "parameters" else 0)
    return observation.mean_of * observation.ways * held


def _span(gradient: Tensor, first: DenseInput, most: int) -> Tensor:
    """Return a basis, in pixel values, of the space that the images span, `(K, P)` or with a column for the bias."""
    basis = row_space_above_noise(gradient).basis[:most]
    width, scale = len(gradient[0]), first.affine
    if scale is None or width == len(scale.gain):
        return basis
    # The bias's column is the factor with which the offset is in a row.
    gain, offset = scale.gain.to(basis), scale.offset.to(basis)
    pixels = (basis[:, :-1] - basis[:, -1:] * offset) / torch.where(gain == 0, torch.inf, gain)
    return torch.cat([pixels, basis[:, -1:]], dim=1)
