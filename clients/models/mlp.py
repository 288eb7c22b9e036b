"""The fully connected network of Proposition 3.1 (Rafiei et al. 2024)."""

import math
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.clients.episode import Parameters
from metaleak.clients.models.model import Activation, activate, image_sides, uniform_weight


class MLP(BaseModel):
    """Fully connected layers: from the pixels through layers of `hidden` units to one logit per way.

    `bias: false` leaves out the biases of the hidden layers (the proposition's "possibly unbiased" layer); the
    classifier always has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = (64, 64)
    activation: Activation = "relu"
    bias: bool = True

    def initialize(self, input_shape: tuple[int, ...], ways: int, generator: torch.Generator) -> Parameters:
        """Return fresh parameters `layer<i>.weight (h, in)`, `layer<i>.bias (h,)`, `head.weight`, `head.bias`."""
        widths = [math.prod(image_sides(input_shape)), *self.hidden]
        parameters: Parameters = {}
        for depth, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            parameters[f"layer{depth}.weight"] = uniform_weight((outputs, inputs), generator)
            if self.bias:
                parameters[f"layer{depth}.bias"] = torch.zeros(outputs)
        parameters["head.weight"] = uniform_weight((ways, widths[-1]), generator)
        parameters["head.bias"] = torch.zeros(ways)
        return parameters

    @property
    def head(self) -> tuple[str, ...]:
        """Return the names of the classifier's parameters."""
        return "head.weight", "head.bias"

    @property
    def input_weight(self) -> str:
        """Return the name of the weight that is multiplied with the pixels."""
        return "layer1.weight" if self.hidden else "head.weight"

    @property
    def dense_layers(self) -> dict[str, str | None]:
        """Return each layer's weight and bias."""
        bodies = [f"layer{depth}" for depth in range(1, len(self.hidden) + 1)]
        return {f"{name}.weight": f"{name}.bias" if self.bias else None for name in bodies} | {
            "head.weight": "head.bias"
        }

    def first_activation(self, values: Tensor) -> Tensor:
        """Return the activation of the first layer's outputs `values`."""
        return activate(self.activation, values) if self.hidden else values

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Return logits `(B, ways)` for `images (B, C, H, W)`."""
        features = images.flatten(1)
        for depth in range(1, len(self.hidden) + 1):
            features = F.linear(features, parameters[f"layer{depth}.weight"], parameters.get(f"layer{depth}.bias"))
            features = activate(self.activation, features)
        return F.linear(features, parameters["head.weight"], parameters["head.bias"])
