"""The outer optimizer: how the mean meta-gradient moves the initialization."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.defenses import CLIP_NAME


class OuterOptimizer(BaseModel):
    """SGD or Adam on the initialization.

    `momentum` is used by SGD only. With a `half_life`, in rounds, the rate decays exponentially: it halves in every
    `half_life` rounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "adam"] = "adam"
    rate: Annotated[float, Field(gt=0, le=1000)] = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    half_life: Annotated[float, Field(gt=0)] | None = None

    def over(self, parameters: Mapping[str, Tensor]) -> "OuterSteps":
        """Return the optimizer for a copy of these parameters."""
        return OuterSteps(self, parameters)


class OuterSteps:
    """An outer optimizer with its state and the parameters it moves."""

    def __init__(self, settings: OuterOptimizer, parameters: Mapping[str, Tensor]) -> None:
        self._leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        leaves = [leaf for name, leaf in self._leaves.items() if name != CLIP_NAME]
        self._optimizer: torch.optim.Optimizer
        if settings.name == "sgd":
            self._optimizer = torch.optim.SGD(leaves, lr=settings.rate, momentum=settings.momentum)
        else:
            self._optimizer = torch.optim.Adam(leaves, lr=settings.rate)
        gamma = 1.0 if settings.half_life is None else 0.5 ** (1.0 / settings.half_life)
        self._schedule = torch.optim.lr_scheduler.ExponentialLR(self._optimizer, gamma)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """A copy of the parameters as they are now."""
        return {name: leaf.detach().clone() for name, leaf in self._leaves.items()}

    def step(self, gradient: Mapping[str, np.ndarray]) -> None:
        """Take one step along `gradient`, which has the names and shapes of the parameters; called once per round.

        Raises `ValueError` when a parameter or a moment of the optimizer is no longer finite; then no further step
        can be taken.
        """
        for name, leaf in self._leaves.items():
            leaf.grad = torch.from_numpy(np.asarray(gradient[name])).to(leaf.dtype)
        self._optimizer.step()
        if CLIP_NAME in self._leaves:
            # Its rate is already in what learners send (`AdaptiveClip.fall`).
            with torch.no_grad():
                self._leaves[CLIP_NAME] -= torch.from_numpy(np.asarray(gradient[CLIP_NAME]))
        self._schedule.step()
        for name, value in {**self._leaves, **self.state()}.items():
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} is no longer finite after the outer step")

    def state(self) -> dict[str, Tensor]:
        """Return all that decides the next steps besides the parameters: `rate`, `steps`, `<parameter>/<moment>`."""
        state = {
            "rate": torch.tensor(self._optimizer.param_groups[0]["lr"], dtype=torch.float64),
            "steps": torch.tensor(self._schedule.last_epoch),
        }
        for name, leaf in self._leaves.items():
            for key, value in self._optimizer.state.get(leaf, {}).items():
                if isinstance(value, Tensor):
                    state[f"{name}/{key}"] = value.detach().clone()
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned; raises `ValueError` when it is of another optimizer or model."""
        plain: dict[str, dict[str, Any]] = {}
        try:
            self._optimizer.param_groups[0]["lr"] = state["rate"].item()
            self._schedule.last_epoch = int(state["steps"].item())
            for path in set(state) - {"rate", "steps"}:
                name, _, key = path.rpartition("/")
                plain.setdefault(name, {})[key] = state[path].clone()
            for name, moments in plain.items():
                self._optimizer.state[self._leaves[name]] = moments
        except KeyError as error:
            raise ValueError(f"the optimizer's state does not fit: {error} is missing or unknown") from None
