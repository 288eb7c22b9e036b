"""The four-block convolutional network of few-shot learning (Vinyals et al. 2016; Finn et al. 2017)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.clients.episode import Parameters
from metaleak.clients.models.model import Model, image_sides, uniform_weight
from metaleak.clients.models.normalization import (
    Statistics,
    batch_statistics,
    normalize_by,
    normalize_over_groups,
)

_BLOCKS = 4


class Conv4(BaseModel):
    """Four blocks of 3x3 convolution, normalization and ReLU, each halving the image, and a linear classifier.

    `normalization: batch` uses the statistics of the current batch, never a running average, as MAML does.
    `downsample: stride` halves the image by a stride of two (as Finn et al. for Omniglot), `max` by max-pooling (for
    larger images). `filters` is the number of channels of each block.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    filters: Annotated[int, Field(ge=1, le=4096)] = 32
    normalization: Literal["batch", "group", "none"] = "batch"
    downsample: Literal["stride", "max"] = "stride"

    def initialize(self, input_shape: tuple[int, ...], ways: int, generator: torch.Generator) -> Parameters:
        """Return fresh parameters `block<i>.{weight,bias,gain,shift}`, `head.weight`, `head.bias`.

        Raises `ValueError` when the image is too small to be halved four times.
        """
        channels, height, width = image_sides(input_shape)
        parameters: Parameters = {}
        for block in range(1, _BLOCKS + 1):
            inputs = channels if block == 1 else self.filters
            bound = (6.0 / (9 * inputs)) ** 0.5
            parameters[f"block{block}.weight"] = uniform_weight((self.filters, inputs, 3, 3), generator, bound)
            parameters[f"block{block}.bias"] = torch.zeros(self.filters)
            if self.normalization != "none":
                parameters[f"block{block}.gain"] = torch.ones(self.filters)
                parameters[f"block{block}.shift"] = torch.zeros(self.filters)
            if self.downsample == "stride":
                height, width = -(-height // 2), -(-width // 2)
            else:
                height, width = height // 2, width // 2
        if height * width == 0:
            raise ValueError(f"conv4 halves an image four times; {input_shape[1]}x{input_shape[2]} is too small")
        parameters["head.weight"] = uniform_weight((ways, self.filters * height * width), generator)
        parameters["head.bias"] = torch.zeros(ways)
        return parameters

    @property
    def head(self) -> tuple[str, ...]:
        """Return the names of the classifier's parameters."""
        return "head.weight", "head.bias"

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Return logits `(B, ways)` for `images (B, C, H, W)`."""
        return self._logits(parameters, images, lambda block, features: batch_statistics(features))

    def decoupled(self, parameters: Parameters, reference: Tensor) -> Model:
        """Return the model with fixed statistics: those of the batch `reference (B, C, H, W)` at `parameters`.

        Each image's logits then depend on that image only. Unless `normalization` is `batch`, this is the model
        itself.
        """
        if self.normalization != "batch":
            return self
        kept: list[Statistics] = []

        def keep(block: int, features: Tensor) -> Statistics:
            mean, scale = batch_statistics(features)
            kept.append((mean.detach(), scale.detach()))
            return kept[-1]

        self._logits(parameters, reference, keep)
        return _FixedStatistics(self, tuple(kept))

    def _logits(
        self, parameters: Parameters, images: Tensor, statistics: Callable[[int, Tensor], Statistics]
    ) -> Tensor:
        features = images
        for block in range(1, _BLOCKS + 1):
            features = F.conv2d(
                features,
                parameters[f"block{block}.weight"],
                parameters[f"block{block}.bias"],
                stride=2 if self.downsample == "stride" else 1,
                padding=1,
            )
            if self.normalization != "none":
                gain, shift = parameters[f"block{block}.gain"], parameters[f"block{block}.shift"]
                if self.normalization == "batch":
                    features = normalize_by(features, statistics(block, features), gain, shift)
                else:
                    features = normalize_over_groups(features, gain, shift)
            features = F.relu(features)
            if self.downsample == "max":
                features = F.max_pool2d(features, 2)
        return F.linear(features.flatten(1), parameters["head.weight"], parameters["head.bias"])


@dataclass(frozen=True)
class _FixedStatistics:
    """A `Conv4` whose batch normalization uses fixed statistics, one pair per block."""

    model: Conv4
    statistics: tuple[Statistics, ...]

    def initialize(self, input_shape: tuple[int, ...], ways: int, generator: torch.Generator) -> Parameters:
        """Return what the model returns."""
        return self.model.initialize(input_shape, ways, generator)

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Return logits `(B, ways)` for `images (B, C, H, W)`, each image by itself."""
        return self.model._logits(parameters, images, lambda block, features: self.statistics[block - 1])
