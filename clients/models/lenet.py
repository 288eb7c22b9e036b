"""The LeNet-style network that gradient inversion is usually shown on (Zhu et al. 2019, DLG)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.clients.episode import Parameters
from metaleak.clients.models.model import Activation, activate, image_sides, uniform_weight


class LeNet(BaseModel):
    """Three 5x5 convolutions with strides 2, 2, 1, an activation after each, and a linear classifier.

    Weights and biases are drawn uniformly from [-`weight_bound`, `weight_bound`]; DLG uses 0.5. With `null` the bound
    is 1 / sqrt(fan-in) and biases are zero. `filters` is the number of channels of each convolution.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    filters: Annotated[int, Field(ge=1, le=4096)] = 12
    activation: Activation = "sigmoid"
    weight_bound: Annotated[float, Field(gt=0)] | None = 0.5

    def initialize(self, input_shape: tuple[int, ...], ways: int, generator: torch.Generator) -> Parameters:
        """Return fresh parameters `conv<i>.weight (F, in, 5, 5)`, `conv<i>.bias`, `head.weight`, `head.bias`."""
        channels, height, width = image_sides(input_shape)
        parameters: Parameters = {}
        for depth, stride in enumerate(_STRIDES, start=1):
            inputs = channels if depth == 1 else self.filters
            self._layer(parameters, f"conv{depth}", (self.filters, inputs, 5, 5), generator)
            height, width = -(-height // stride), -(-width // stride)
        self._layer(parameters, "head", (ways, self.filters * height * width), generator)
        return parameters

    @property
    def head(self) -> tuple[str, ...]:
        """Return the names of the classifier's parameters."""
        return "head.weight", "head.bias"

    def _layer(self, parameters: Parameters, name: str, shape: tuple[int, ...], generator: torch.Generator) -> None:
        parameters[f"{name}.weight"] = uniform_weight(shape, generator, self.weight_bound)
        parameters[f"{name}.bias"] = (
            torch.zeros(shape[0])
            if self.weight_bound is None
            else uniform_weight((shape[0],), generator, self.weight_bound)
        )

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Return logits `(B, ways)` for `images (B, C, H, W)`."""
        features = images
        for depth, stride in enumerate(_STRIDES, start=1):
            features = F.conv2d(
                features,
                parameters[f"conv{depth}.weight"],
                parameters[f"conv{depth}.bias"],
                stride=stride,
                padding=2,
            )
            features = activate(self.activation, features)
        return F.linear(features.flatten(1), parameters["head.weight"], parameters["head.bias"])


_STRIDES = (2, 2, 1)
