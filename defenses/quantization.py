"""Coarse gradients: few levels, or the sign alone."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.defenses.cost import entries
from metaleak.defenses.defense import NO_NOISE, AddedNoise, Shapes
from metaleak.defenses.randomness import RandomSource

_SCALE_BYTES = 4
"""Each tensor sends one float32 beside its entries."""


class Quantization(BaseModel):
    """Rounds every entry to one of 2 L + 1 levels, evenly spaced in [-m, m]; L = 2 ** (`bits` - 1) - 1.

    m is the largest magnitude of the entry's own tensor; zero is a level. To the nearest level (of two, the even
    one), or, with `stochastic`, up or down at random so that the expectation is the entry itself (Alistarh et al.
    2017, "QSGD", which takes the L2 norm for m). No privacy guarantee.

    Example:
        >>> Quantization(bits=3)({"weight": torch.tensor([3.0, -4.0])}, RandomSource.of("seed"))
        {'weight': tensor([ 2.6667, -4.0000])}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Literal["shared"] = "shared"
    bits: Annotated[int, Field(ge=2, le=16)]
    stochastic: bool = False

    @property
    def levels(self) -> int:
        """How many levels there are above zero."""
        return int(2 ** (self.bits - 1)) - 1

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return `tensors` on their levels; zeros stay, a tensor with an infinite or NaN entry becomes NaN."""
        if not self.stochastic:
            return self.without_noise(tensors)
        return {name: self._rounded(value, random) for name, value in tensors.items()}

    def noise(self) -> AddedNoise | None:
        """Return none, or `None` for stochastic rounding: its law depends on the entry."""
        return None if self.stochastic else NO_NOISE

    def without_noise(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `tensors` on their nearest levels."""
        return {name: self._rounded(value, None) for name, value in tensors.items()}

    def bytes_sent(self, shapes: Shapes) -> int:
        """Return the bytes of `bits` an entry and one float32 scale a tensor."""
        return -(-self.bits * entries(shapes) // 8) + _SCALE_BYTES * len(shapes)

    def _rounded(self, value: Tensor, random: RandomSource | None) -> Tensor:
        steps = value.detach().to(torch.float64)
        largest = _largest(steps)
        if largest == 0:
            return value
        steps = steps / largest * self.levels
        if random is not None:
            # Drawn on the CPU, whose generator gives the same numbers on every machine.
            drawn = torch.rand(value.shape, generator=random.generator, dtype=torch.float64, device="cpu")
            chance = drawn.to(value.device)
            steps = torch.floor(steps + chance)
        else:
            steps = torch.round(steps)
        return (steps / self.levels * largest).to(value.dtype)


class Sign(BaseModel):
    """Sends the sign of every entry times the mean magnitude of its tensor; the sign of zero is +.

    Bernstein et al. 2018, "signSGD"; scaled as in Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", without
    their error feedback. No privacy guarantee.

    Example:
        >>> Sign()({"weight": torch.tensor([3.0, -4.0])}, RandomSource.of("seed"))
        {'weight': tensor([ 3.5000, -3.5000])}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Literal["shared"] = "shared"

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return `without_noise`; draws nothing."""
        return self.without_noise(tensors)

    def noise(self) -> AddedNoise:
        """Return none."""
        return NO_NOISE

    def without_noise(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return two values a tensor; a tensor with an infinite or NaN entry has no finite entry afterwards."""
        return {name: _signed(value.detach()) for name, value in tensors.items()}

    def bytes_sent(self, shapes: Shapes) -> int:
        """Return the bytes of one bit an entry and one float32 scale a tensor."""
        return -(-entries(shapes) // 8) + _SCALE_BYTES * len(shapes)


def _signed(value: Tensor) -> Tensor:
    if value.numel() == 0:
        return value
    mean = value.to(torch.float64).abs().mean().to(value.dtype)
    return torch.where(value < 0, -mean, mean)


def _largest(value: Tensor) -> Tensor:
    return value.abs().max() if value.numel() else value.new_zeros(())
