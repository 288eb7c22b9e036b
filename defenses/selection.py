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

    A pattern is one of the shell's: `*` stands for any text, `?` for one character, `[ab]` for one of these. The
    default is the last layer as the built-in models name it; a module of your own has names of its own. What is never
    sent is never trained: the rest of the network stays as it was initialized. No privacy guarantee.

    Example:
        >>> tensors = {"layer1.weight": torch.ones(2), "head.weight": torch.ones(2)}
        >>> Selection(names=("head.*",))(tensors, RandomSource.of("seed"))
        {'layer1.weight': tensor([0., 0.]), 'head.weight': tensor([1., 1.])}
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
