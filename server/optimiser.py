"""The outer optimiser: how the mean meta-gradient moves the initialisation."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field


class OuterOptimiser(BaseModel):
    """SGD or Adam on the initialisation.

    `momentum` is SGD's, and is not used by Adam. With a `half_life` in rounds the rate falls exponentially.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "adam"] = "adam"
    rate: Annotated[float, Field(gt=0, le=1000)] = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    half_life: Annotated[float, Field(gt=0)] | None = None

    def over(self, parameters: list[torch.Tensor]) -> "OuterSteps":
        """Return the optimiser at work on these leaf tensors."""
        return OuterSteps(self, parameters)


class OuterSteps:
    """An outer optimiser with its state, over leaf tensors."""

    def __init__(self, settings: OuterOptimiser, parameters: list[torch.Tensor]) -> None:
        self._optimiser: torch.optim.Optimizer
        if settings.name == "sgd":
            self._optimiser = torch.optim.SGD(parameters, lr=settings.rate, momentum=settings.momentum)
        else:
            self._optimiser = torch.optim.Adam(parameters, lr=settings.rate)
        gamma = 1.0 if settings.half_life is None else 0.5 ** (1.0 / settings.half_life)
        self._schedule = torch.optim.lr_scheduler.ExponentialLR(self._optimiser, gamma)

    def step(self) -> None:
        """Move the tensors along their `.grad`, once a round."""
        self._optimiser.step()
        self._schedule.step()
