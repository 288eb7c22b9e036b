"""Checkpoints: the round, the parameters and the optimizer's state, from which a training can be resumed."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from metaleak.server.record.tensor_file import read_tensors


@dataclass(frozen=True)
class Checkpoint:
    """The state after `round` rounds; all randomness is keyed by round and learner, so it holds no generator."""

    round: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    def content(self) -> bytes:
        """Return it as a safetensors file."""
        tensors = {f"parameters/{name}": value.contiguous() for name, value in self.parameters.items()}
        tensors |= {f"optimizer/{name}": value.contiguous() for name, value in self.optimizer.items()}
        return save(tensors, metadata={"format": "metaleak-checkpoint-1", "round": str(self.round)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file; raises `ValueError` in one line when it is not a readable checkpoint."""
    try:
        said, arrays = read_tensors(path)
        if said.get("format") != "metaleak-checkpoint-1":
            raise ValueError("is not a checkpoint")
        parts: dict[str, dict[str, Tensor]] = {"parameters": {}, "optimizer": {}}
        for name, value in arrays.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = torch.from_numpy(value)
        return Checkpoint(int(said["round"]), **parts)
    except KeyError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
