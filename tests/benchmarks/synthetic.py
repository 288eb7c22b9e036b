"""A data set of random images, as many as a benchmark needs; only their size matters for speed."""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from metaleak.clients.datasets import LabeledExamples


class Synthetic(BaseModel):
    """`images` random 28x28 gray images in `classes` classes of one size.

    `sliding` images are windows of one row of random bytes, each a byte after the last: millions take little memory.
    """

    model_config = ConfigDict(frozen=True)

    images: Annotated[int, Field(ge=1)] = 20_000
    classes: Annotated[int, Field(ge=1)] = 20
    sliding: bool = False

    def load(self) -> LabeledExamples:
        """Return the images, the same every time."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.images, 1, 28, 28)
        if self.sliding:
            row = torch.randint(0, 256, (self.images + 783,), dtype=torch.uint8, generator=generator)
            examples = row.as_strided(shape, (1, 784, 28, 1))
        else:
            examples = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return LabeledExamples(
            examples=examples,
            labels=torch.arange(self.images) % self.classes,
            classes=tuple(str(label) for label in range(self.classes)),
        )
