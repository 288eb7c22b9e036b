"""Additive noise, the defense of Rafiei et al. 2024, in each of its four places."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.defenses.defense import AddedNoise
from metaleak.defenses.randomness import RandomSource


class Noise(BaseModel):
    """Independent zero-mean noise on every entry, with standard deviation set by `scale`.

    For images (`place: support | query`) the standard deviation is `scale` in units of the pixel range [0, 1]; the
    result is not clipped. For gradients (`place: inner | shared`) it is `scale` times the root mean square of all
    entries of that gradient, so one value means the same for every model and stage of training. `law` is the
    distribution; both have the same standard deviation at the same scale.

    No differential-privacy guarantee: nothing is clipped, and relative noise depends on the data.

    Example:
        >>> Noise(place="shared", scale=0.5).noise()
        AddedNoise(law='gaussian', deviation=0.5, relative=True)
        >>> sent = Noise(scale=0.5)({"weight": torch.tensor([3.0, -4.0])}, RandomSource.of("seed", 1))
        >>> sent["weight"].shape
        torch.Size([2])
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    acts_on_each_example: ClassVar[bool] = True

    place: Literal["support", "query", "inner", "shared"] = "shared"
    law: Literal["gaussian", "laplace"] = "gaussian"
    scale: Annotated[float, Field(ge=0, le=1e6)] = 1.0

    def noise(self) -> AddedNoise:
        """Return the noise; relative where it is added to a gradient."""
        return AddedNoise(self.law, self.scale, relative=self.place in ("inner", "shared"))

    def without_noise(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `tensors` as they are."""
        return tensors

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return `tensors` plus noise; `scale` 0 returns them unchanged, an all-zero gradient stays zero."""
        if self.scale == 0:
            return tensors
        if whole := [name for name, value in tensors.items() if not value.is_floating_point()]:
            raise ValueError(
                f"noise cannot be added to {self.place} {whole[0]} of {tensors[whole[0]].dtype}: no image"
            )
        generator = random.generator
        deviation = self.scale if self.place in ("support", "query") else self.scale * _root_mean_square(tensors)
        return {name: value + deviation * _unit_noise(self.law, value, generator) for name, value in tensors.items()}


def _root_mean_square(tensors: dict[str, Tensor]) -> Tensor:
    squares = torch.stack([value.detach().square().sum() for value in tensors.values()])
    return (squares.sum() / sum(value.numel() for value in tensors.values())).sqrt()


def _unit_noise(law: Literal["gaussian", "laplace"], like: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise of standard deviation 1, shaped and typed as `like` and where it is.

    It is drawn on the CPU, whose generator gives the same numbers on every machine.
    """
    if law == "gaussian":
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)
    # A Laplace variable is the difference of two exponential ones; b = 1 / sqrt(2) gives unit variance.
    both = torch.empty((2, *like.shape), dtype=like.dtype, device="cpu").exponential_(generator=generator)
    return ((both[0] - both[1]) / math.sqrt(2.0)).to(like.device)
