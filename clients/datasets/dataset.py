"""What a data set is: images with labels, and the promise to load them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """All images of a data set, in an order that is the same on every machine.

    `images (n, C, H, W)` uint8 in 0..255; `labels (n,)` int64 in [0, len(classes)); `classes` are their
    names. `held_out_classes` are kept for evaluation tasks only; when there are none, evaluation holds out
    images of the learners' own classes. Raises `ValueError` when these do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    held_out_classes: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (n, C, H, W), not {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ValueError(f"labels must be int64 (n,), not {self.labels.dtype} {tuple(self.labels.shape)}")
        if self.images.numel() == 0:
            raise ValueError(f"a data set needs images, not shape {tuple(self.images.shape)}")
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images do not go with {len(self.labels)} labels")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(f"labels lie in [{low}, {high}], not in [0, {len(self.classes)}), the number of classes")
        strangers = sorted(label for label in self.held_out_classes if not 0 <= label < len(self.classes))
        if strangers:
            raise ValueError(f"held-out class {strangers[0]} is not one of the {len(self.classes)} classes")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(C, H, W)` of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def pixels(self, places: Tensor) -> Tensor:
        """Return the images at `places (m,)` as learners see them, float32 `(m, C, H, W)` in [0, 1]."""
        return self.images[places].to(torch.float32) / 255.0


@runtime_checkable
class DataSet(Protocol):
    """A source of labeled images; also its configuration, a frozen and hashable pydantic model.

    Two calls of `load` on equal data sets return equal images in the same order.
    """

    def load(self) -> LabeledImages:
        """Return all images, or raise `ValueError` or `OSError` with one clear line."""
        ...

    def __hash__(self) -> int:
        """Return the same number for equal data sets, so that a loaded one can be kept."""
        ...
