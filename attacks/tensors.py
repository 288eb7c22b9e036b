"""Dataclasses of tensors that are moved between devices together."""

from dataclasses import fields, replace
from typing import Self

import torch
from torch import Tensor


class Tensors:
    """A base of dataclasses whose fields include tensors or dictionaries of tensors."""

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with all tensors on `device`."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return replace(self, **{name: _moved(value, device) for name, value in found.items()})  # type: ignore[type-var]


def _moved(value: object, device: torch.device | str) -> object:
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    if isinstance(value, Tensor) and value.ndim and value.stride(0) == 0:
        # Rows that are views of the same row are moved once.
        return value[:1].to(device).expand_as(value)
    return value.to(device) if isinstance(value, Tensor | Tensors) else value
