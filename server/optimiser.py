"""The outer optimiser: how the mean meta-gradient moves the initialisation."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field


class OuterOptimiser(BaseModel):
    """SGD or Adam on the initialisation; `momentum` is SGD's, and is not used by Adam."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "adam"] = "adam"
    rate: Annotated[float, Field(gt=0, le=1000)] = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def over(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        """Return the torch optimiser of these leaf tensors, which keeps its own state."""
        if self.name == "sgd":
            return torch.optim.SGD(parameters, lr=self.rate, momentum=self.momentum)
        return torch.optim.Adam(parameters, lr=self.rate)
