"""The outer optimizer, which updates the initialization with the mean meta-gradient."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from metaleak.defenses import CLIP_NAME


class OuterOptimizer(BaseModel):
    """SGD or Adam on the initialization.

    `momentum` is used by SGD only. With a `half_life`, in rounds, the rate decays exponentially: it is halved every
    `half_life` rounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "adam"] = "adam"
    rate: Annotated[float, Field(gt=0, le=1000)] = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    half_life: Annotated[float, Field(gt=0)] | None = None

    def over(self, parameters: Mapping[str, Tensor]) -> "OuterSteps":
        """Return an optimizer for a copy of these parameters."""
        return OuterSteps(self, parameters)


class OuterSteps:
    """An outer optimizer with its state and the parameters that it updates.

    The steps are those of `torch.optim.SGD` and `torch.optim.Adam`. The functions behind these classes are called
    directly, because the classes import torch's compiler, which takes more than a second and 160 MB.
    """

    def __init__(self, settings: OuterOptimizer, parameters: Mapping[str, Tensor]) -> None:
        self._values = {name: value.detach().clone() for name, value in parameters.items()}
        self._moments: dict[str, dict[str, Tensor]] = {}
        self._settings = settings
        self._rate, self._steps = settings.rate, 0

    @property
    def parameters(self) -> dict[str, Tensor]:
        """A copy of the current parameters."""
        return {name: value.clone() for name, value in self._values.items()}

    def step(self, gradient: Mapping[str, np.ndarray]) -> None:
        """Take one step with `gradient`, which has the names and shapes of the parameters; called once per round.

        Raises `ValueError` when a parameter or a moment of the optimizer is no longer finite; no further step can be
        taken then.
        """
        slopes = {
            name: torch.from_numpy(np.asarray(gradient[name])).to(value.dtype) for name, value in self._values.items()
        }
        with torch.no_grad():
            # For a clipping norm, the values that learners send already include its rate (`AdaptiveClip.fall`).
            clip = slopes.pop(CLIP_NAME, None)
            if clip is not None:
                self._values[CLIP_NAME] -= clip
            values = [self._values[name] for name in slopes]
            if self._settings.name == "sgd":
                self._descend(values, slopes)
            else:
                self._adapt(values, slopes)
        self._rate *= 1.0 if self._settings.half_life is None else 0.5 ** (1.0 / self._settings.half_life)
        self._steps += 1
        for name, value in {**self._values, **self.state()}.items():
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} is no longer finite after the outer step")

    def _descend(self, values: list[Tensor], slopes: dict[str, Tensor]) -> None:
        kept: list[Tensor | None] = [self._moments.get(name, {}).get("momentum_buffer") for name in slopes]
        momentum = self._settings.momentum
        sgd(
            values,
            list(slopes.values()),
            kept,
            weight_decay=0.0,
            momentum=momentum,
            lr=self._rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        self._moments = {
            name: {"momentum_buffer": value} for name, value in zip(slopes, kept, strict=True) if value is not None
        }

    def _adapt(self, values: list[Tensor], slopes: dict[str, Tensor]) -> None:
        if not self._moments:
            self._moments = {
                name: {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(slope),
                    "exp_avg_sq": torch.zeros_like(slope),
                }
                for name, slope in slopes.items()
            }
        kept = [self._moments[name] for name in slopes]
        adam(
            values,
            list(slopes.values()),
            [moments["exp_avg"] for moments in kept],
            [moments["exp_avg_sq"] for moments in kept],
            [],
            [moments["step"] for moments in kept],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """Return the state that, with the parameters, determines later steps.

        The entries are `rate`, `steps` and `<parameter>/<moment>`.
        """
        state = {"rate": torch.tensor(self._rate, dtype=torch.float64), "steps": torch.tensor(self._steps)}
        for name, moments in self._moments.items():
            state |= {f"{name}/{key}": value.clone() for key, value in moments.items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state returned by `state`; raises `ValueError` if it is of another optimizer or model."""
        plain: dict[str, dict[str, Tensor]] = {}
        wanted = {"momentum_buffer"} if self._settings.name == "sgd" else {"step", "exp_avg", "exp_avg_sq"}
        try:
            self._rate, self._steps = state["rate"].item(), int(state["steps"].item())
            for path in set(state) - {"rate", "steps"}:
                name, _, key = path.rpartition("/")
                plain.setdefault(name, {})[key] = state[path].clone()
            for name, moments in plain.items():
                if name not in self._values or set(moments) != wanted:
                    raise KeyError(name)
            if plain and (lacking := sorted(set(self._values) - {CLIP_NAME} - set(plain))):
                raise KeyError(lacking[0])
        except KeyError as error:
            raise ValueError(f"the optimizer's state does not fit: {error} is missing or unknown") from None
        self._moments = plain
