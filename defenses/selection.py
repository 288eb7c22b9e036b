"""Sending a selection of the parameters' gradients and nothing of the rest."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.defenses.cost import dense_bytes
from metaleak.defenses.defense import NO_NOISE, AddedNoise, Shapes
from metaleak.defenses.randomness import RandomSource


class Selection(BaseModel):
    """Sends the tensors whose name matches one of the patterns `names` and zeros for all others.

    A pattern is a shell's: `*` any text, `?` one sign, `[ab]` one of these; the default is the last layer as
    the built-in models call it, while a module of your own gives it a name of its own. What is never sent is never
    trained: the rest of the network stays as it was initialized. A structural defense without a privacy guarantee.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Literal["shared"] = "shared"
    names: Annotated[tuple[str, ...], Field(min_length=1)] = ("head.*",)

    def noise(self) -> AddedNoise:
        """Return none."""
        return NO_NOISE

    def __call__(self, tensors: dict[str, Tensor], random: RandomSource) -> dict[str, Tensor]:
        """Return `without_noise`; draws nothing."""
        return self.without_noise(tensors)

    def without_noise(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the selected tensors as they are, the others zero.

        Raises `ValueError` in one line when no tensor is selected.
        """
        chosen = self._chosen(list(tensors))
        return {name: value if name in chosen else torch.zeros_like(value) for name, value in tensors.items()}

    def bytes_sent(self, shapes: Shapes) -> int:
        """Return the bytes of the selected entries in float32."""
        return dense_bytes({name: shapes[name] for name in self._chosen(list(shapes))})

    def _chosen(self, names: list[str]) -> set[str]:
        chosen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in self.names)}
        if not chosen:
            raise ValueError(f"names: {', '.join(self.names)} select none of {', '.join(names)}")
        return chosen
