"""Tensors stored on disk under a hash of what decides them, so that nothing is computed twice."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from metaleak.server.record.plain_file import plain_file
from metaleak.server.record.tensor_file import encoded, read_header, read_tensor
from metaleak.server.record.whole_file import write_whole


class Kept:
    """A folder with a safetensors file for each key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, key: str) -> bool:
        """Return whether there is a file of this key that can be read."""
        return self.read(key) is not None

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of `key`, or `None` when the file does not exist or cannot be read."""
        try:
            with plain_file(self._folder, _name(key)) as file:
                header = read_header(file)
                return {name: torch.from_numpy(read_tensor(file, header, name)) for name in header.tensors}
        except (OSError, ValueError):
            return None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of `key`, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _, buffers = encoded({name: value.detach().cpu().numpy() for name, value in tensors.items()}, {})
        write_whole(self._folder / _name(key), buffers)


def _name(key: str) -> str:
    return f"{key}.safetensors"
