"""Gradient pruning: only the largest entries leave."""

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.defenses.cost import dense_bytes, entries
from metaleak.defenses.defense import NO_NOISE, AddedNoise, Shapes
from metaleak.defenses.randomness import RandomSource


class Pruning(BaseModel):
    """Keeps the fraction `keep` of the entries, the largest in magnitude over all tensors together; zeros the rest.

    Of n entries ceil(`keep` * n) stay as they are; of equal magnitudes the first ones do. The defense of Zhu, Liu and
    Han 2019, "Deep Leakage from Gradients", without the error feedback that compression adds, by which a learner
    would send later what it left out. No privacy guarantee.

    Example:
        >>> Pruning(keep=0.5)({"weight": torch.tensor([3.0, -4.0])}, RandomSource.of("seed"))
        {'weight': tensor([ 0., -4.])}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Literal["shared"] = "shared"
    keep: Annotated[float, Field(gt=0, le=1)]

    def noise(self) -> AddedNoise:
        """Return none."""
        return NO_NOISE

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return `without_noise`; draws nothing."""
        return self.without_noise(tensors)

    def without_noise(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `tensors` with the small entries zero. A NaN counts as large."""
        magnitudes = torch.cat([value.detach().abs().flatten().to(torch.float64) for value in tensors.values()])
        # A stable sort, not topk: which of two equal entries stays must not depend on the machine.
        order = torch.sort(magnitudes, descending=True, stable=True).indices
        kept = torch.zeros(len(magnitudes), dtype=torch.bool, device=magnitudes.device)
        kept[order[: self._count(len(magnitudes))]] = True
        masks = torch.split_with_sizes(kept, [value.numel() for value in tensors.values()])
        return {
            name: torch.where(mask.view(value.shape), value, torch.zeros_like(value))
            for (name, value), mask in zip(tensors.items(), masks, strict=True)
        }

    def bytes_sent(self, shapes: Shapes) -> int:
        """Return the bytes of the kept float32 values and their places, as indices or a bitmap, or of all entries."""
        total = entries(shapes)
        count = self._count(total)
        places = min(count * max(1, math.ceil(math.log2(max(2, total)))), total)
        return min(-(-(32 * count + places) // 8), dense_bytes(shapes))

    def _count(self, total: int) -> int:
        # Less a part in 1e12: 0.07 * 100 is 7.000000000000001.
        return min(total, math.ceil(self.keep * total * (1 - 1e-12)))
