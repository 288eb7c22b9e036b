"""All that a training needs to go on: the round, the parameters, the optimiser's state."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """The state after `round` rounds. Everything random is keyed by round and learner, so it needs no generator."""

    round: int
    parameters: dict[str, Tensor]
    optimiser: dict[str, Tensor]

    def content(self) -> bytes:
        """Return it as a safetensors file."""
        tensors = {f"parameters/{name}": value.contiguous() for name, value in self.parameters.items()}
        tensors |= {f"optimiser/{name}": value.contiguous() for name, value in self.optimiser.items()}
        return save(tensors, metadata={"format": "metaleak-checkpoint-1", "round": str(self.round)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file; raises `ValueError` in one line when it cannot be read or is something
    else.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            said = opened.metadata() or {}
            if said.get("format") != "metaleak-checkpoint-1":
                raise ValueError(f"{path}: is not a checkpoint")
            parts: dict[str, dict[str, Tensor]] = {"parameters": {}, "optimiser": {}}
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                part, _, rest = name.partition("/")
                parts[part][rest] = opened.get_tensor(name)
            return Checkpoint(int(said["round"]), **parts)
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
