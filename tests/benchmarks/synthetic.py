"""A data set of random images, as many as a benchmark needs; only their size matters for speed."""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from metaleak.clients.datasets import LabeledExamples


class Synthetic(BaseModel):
    """`images` random 28x28 gray images in `classes` classes of one size."""

    model_config = ConfigDict(frozen=True)

    images: Annotated[int, Field(ge=1)] = 20_000
    classes: Annotated[int, Field(ge=1)] = 20

    def load(self) -> LabeledExamples:
        """Return the images, the same every time."""
        generator = torch.Generator().manual_seed(0)
        return LabeledExamples(
            examples=torch.randint(0, 256, (self.images, 1, 28, 28), dtype=torch.uint8, generator=generator),
            labels=torch.arange(self.images) % self.classes,
            classes=tuple(str(label) for label in range(self.classes)),
        )
