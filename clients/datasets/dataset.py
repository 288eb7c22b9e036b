"""Data sets: labeled examples, images or token sequences, and the protocol that loads them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Modality = Literal["image", "tokens"]
"""The kind of a data set's examples; it decides how they are stored, computed with, compared and shown."""

# For each modality: the type of the stored numbers, the number of axes, and both in words.
_STORED: dict[Modality, tuple[torch.dtype, int, str]] = {
    "image": (torch.uint8, 4, "uint8 (n, C, H, W)"),
    "tokens": (torch.int64, 2, "int64 (n, T)"),
}


@dataclass(frozen=True, eq=False)
class LabeledExamples:
    """All examples of a data set, in an order that is the same on every machine.

    `examples` of the modality `image` are uint8 `(n, C, H, W)` in 0..255; those of the modality `tokens` are int64
    `(n, T)`, the numbers of a vocabulary's tokens from 0 on. `labels (n,)` are int64 in [0, len(classes)), and
    `classes` are their names. `held_out_classes` are kept for evaluation tasks only; when there are none, evaluation
    holds out examples of the learners' own classes. `names` are the names of the examples, such as their files, if
    they have any. For tokens, `padding` is the token that makes sentences equally long, and `text_of` turns the
    tokens of a sentence into text. Raises `ValueError` when these do not fit together.
    """

    examples: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    held_out_classes: frozenset[int] = frozenset()
    modality: Modality = "image"
    names: tuple[str, ...] = ()
    padding: int | None = None
    text_of: Callable[[Sequence[int]], str] | None = None

    def __post_init__(self) -> None:
        if self.modality not in _STORED:
            raise ValueError(f"modality: {self.modality!r} is not allowed; {' or '.join(_STORED)}")
        dtype, axes, written = _STORED[self.modality]
        if self.examples.dtype != dtype or self.examples.ndim != axes:
            given = f"{self.examples.dtype} {tuple(self.examples.shape)}"
            raise ValueError(f"examples of the modality {self.modality} must be {written}, not {given}")
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ValueError(f"labels must be int64 (n,), not {self.labels.dtype} {tuple(self.labels.shape)}")
        if self.examples.numel() == 0:
            raise ValueError(f"a data set needs examples, not shape {tuple(self.examples.shape)}")
        if self.modality == "tokens" and int(self.examples.min()) < 0:
            raise ValueError(f"tokens are numbered from 0 on, not {int(self.examples.min())}")
        if self.modality != "tokens" and (self.padding, self.text_of) != (None, None):
            raise ValueError("padding and text_of are for the modality tokens")
        if len(self.examples) != len(self.labels):
            raise ValueError(f"there are {len(self.examples)} examples, but {len(self.labels)} labels")
        if self.names and len(self.names) != len(self.labels):
            raise ValueError(f"there are {len(self.names)} names, but {len(self.labels)} examples")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(f"labels lie in [{low}, {high}], not in [0, {len(self.classes)}), the number of classes")
        strangers = sorted(label for label in self.held_out_classes if not 0 <= label < len(self.classes))
        if strangers:
            raise ValueError(f"held-out class {strangers[0]} is not one of the {len(self.classes)} classes")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example: `(C, H, W)` of an image, `(T,)` of tokens."""
        return tuple(self.examples.shape[1:])

    def inputs(self, places: Tensor) -> Tensor:
        """Return the examples at `places (m,)` in the form in which learners compute with them.

        Images are float32 `(m, C, H, W)` in [0, 1]; tokens stay int64 `(m, T)`.
        """
        chosen = self.examples.index_select(0, places)
        return chosen.to(torch.float32).div_(255.0) if self.modality == "image" else chosen


@runtime_checkable
class DataSet(Protocol):
    """A source of labeled examples; also its configuration, a frozen and hashable pydantic model.

    Two calls of `load` on equal data sets return equal examples in the same order.
    """

    def load(self) -> LabeledExamples:
        """Return all examples, or raise `ValueError` or `OSError` with one clear line."""
        ...

    def __hash__(self) -> int:
        """Return the same number for equal data sets, so that a loaded data set can be cached."""
        ...
